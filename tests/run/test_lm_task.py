"""Pre-training in the loop of a stage."""

from stage import tiny, trained


def test_held_out_figures_are_logged_at_each_interval_and_at_the_last_step(tmp_path):
    rows = trained(tiny(tmp_path, steps=3, evaluate_every=2), tmp_path)
    assert [row["step"] for row in rows if "eval/bits_per_byte" in row] == [2, 3]
