"""Statistics of a comparison: pure functions on numbers over replicates.

- `base`: samples, intervals, what counts as a tie; `intervals`: bootstrap of means, differences, P(A > B);
- `hypothesis_tests`: signed-rank, Mann–Whitney, Holm; `power`: what R replicates can find;
- `verdict` and `wording`: what may be said of a pair, and the paragraph that says it;
- `anytime`: best-so-far curves, bands, areas, cuts; `targets`: censored times, speed-up over random;
- `expected_best`: random search of another length; `across_datasets`: ranks and regret.
"""
