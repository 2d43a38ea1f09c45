"""Schedules: an experiment again and again, at the times of a cron expression, each time within bounds.

`timing` knows when, `deciding` what to do now (both pure), `firing` runs one firing in a process of
its own, `scheduler` all of them in a loop, `notices` and `webhook` tell how they ended, `rendering`
writes what a cluster runs instead of our loop. What is known of schedules lies in `storage.schedules`.
"""
