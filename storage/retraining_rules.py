"""What the history checker asks about retrainings; `{…}` is filled in by `storage.checker`."""

from __future__ import annotations

RETRAINED_ONCE = """
SELECT study.name, 'winner ' || winner.value_json || ' with fresh seed ' || seed.value_json
       || ' is trials ' || string_agg(CAST(trial.number AS text), ', ' ORDER BY trial.number)
FROM shoal.experiment_studies AS study JOIN studies ON studies.study_name = study.name
JOIN trials AS trial ON trial.study_id = studies.study_id
JOIN trial_user_attributes AS winner
  ON winner.trial_id = trial.trial_id AND winner.key = 'shoal:retrain_trial'
JOIN trial_user_attributes AS seed
  ON seed.trial_id = trial.trial_id AND seed.key = 'shoal:retrain_seed'
WHERE {ours} AND study.role = 'retraining' AND NOT (trial.state = 'FAIL' AND EXISTS (
    SELECT FROM shoal.events AS event
    WHERE event.kind = 'retried' AND event.study_id = study.id AND event.trial_id = trial.trial_id))
GROUP BY study.name, winner.value_json, seed.value_json
HAVING count(*) > 1
"""

RETRAININGS_ARE_READ = """
WITH read AS (
    SELECT event.*, study.name,
           (SELECT count(*) FROM shoal.test_readings AS reading
            WHERE reading.retraining_trial_id = event.trial_id) AS readings,
           EXISTS (SELECT FROM shoal.test_readings AS reading
            JOIN trial_user_attributes AS winner ON winner.trial_id = event.trial_id
             AND winner.key = 'shoal:retrain_trial'
             AND winner.value_json = CAST(reading.trial_id AS text)
            JOIN trial_user_attributes AS seed ON seed.trial_id = event.trial_id
             AND seed.key = 'shoal:seed' AND seed.value_json = CAST(reading.seed AS text)
            WHERE reading.purpose = 'retraining') AS seen
    FROM shoal.events AS event
    JOIN shoal.experiment_studies AS study ON study.id = event.study_id AND {ours}
    WHERE event.kind = 'completed' AND study.role = 'retraining'
)
SELECT 'trial ' || read.trial_number || ' of ' || read.name,
       'is complete, with ' || read.readings || ' readings of the test set'
FROM read WHERE read.readings > 1 OR (read.readings = 0 AND NOT read.seen)
UNION ALL
SELECT 'reading ' || reading.id || ' of ' || reading.study_name,
       'is of no retraining that was completed'
FROM shoal.test_readings AS reading
WHERE reading.purpose = 'retraining'
  AND (CAST(:experiment AS int) IS NULL OR reading.experiment_id = :experiment)
  AND NOT EXISTS (
    SELECT FROM shoal.events AS event JOIN shoal.experiment_studies AS study
      ON study.id = event.study_id AND study.role = 'retraining'
    WHERE event.kind = 'completed' AND event.trial_id = reading.retraining_trial_id)
"""
