"""A slice of `campaign`, with other random numbers than a run by hand begins with.

Kills within rows are not in it: studies/test_run.py kills a run of two.
"""

import campaign


def test_no_damage_is_missed(tmp_path):
    tally = campaign.campaign(60, 0, tmp_path, seed=1)
    assert campaign.bad(tally) == {}
    assert sum(n for (_, outcome), n in tally.items() if outcome == "found") >= 50


def test_a_killed_report_is_written_with_the_same_bytes(tmp_path):
    with campaign.one_thread():
        campaign.computed(("gap",), tmp_path)
        tally = campaign.report_kills(1, tmp_path)
    assert campaign.bad(tally) == {}
    assert tally["kill, report", "killed"] == tally["kill, report", "the same bytes"] == 1
