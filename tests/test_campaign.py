"""A slice of `campaign`, with other random numbers than a run by hand begins with."""

import campaign


def test_no_damage_is_missed(tmp_path):
    tally = campaign.campaign(60, 0, tmp_path, seed=1)
    assert campaign.bad(tally) == {}
    assert sum(n for (_, outcome), n in tally.items() if outcome == "found") >= 50


def test_two_kills_end_with_the_same_bytes(tmp_path):
    made = campaign.computed(("gap",), tmp_path / "whole")
    tally = campaign.kills(made, 2, campaign.random.Random(1), tmp_path, ("gap",))
    assert campaign.bad(tally) == {}
    assert sum(n for (_, outcome), n in tally.items() if outcome == "killed") == 2
