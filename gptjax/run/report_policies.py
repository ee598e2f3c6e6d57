"""What the report shows of stages that tune a policy by other means than PPO: DPO, GRPO, rejection sampling."""

from gptjax.run import report_charts as charts
from gptjax.run.report_charts import Picture
from gptjax.run.series import Rows

TITLES = {"dpo": "DPO", "grpo": "GRPO", "rejection": "Rejection sampling"}
HEADLINES = {
    "dpo": ("accuracy", "{:.1%} ordered correctly"),
    "grpo": ("gold_gain", "{:+.3g} gold reward"),
    "rejection": ("nats_per_token", "{:.3g} nats per token"),
}
_GAINED = {"kl_nats": "KL from the SFT model {:.3g} nats per answer", "gold_gain": "gold reward {:+.3g} from SFT"}
DETAILS = {
    "dpo": {"accuracy": "held-out pairs: {:.1%} ordered correctly", "margin": "margin {:.3g}"} | _GAINED,
    "grpo": {"proxy_sft": "proxy reward {:.3g} before", "proxy_grpo": "{:.3g} after"} | _GAINED,
    "rejection": {
        "proxy_samples": "proxy reward of all samples {:.3g}",
        "proxy_winners": "of the winners {:.3g}",
        "end_rate": "{:.1%} of answers end on their own after fine-tuning",
    },
}


def pictures(task: str, rows: Rows) -> list[Picture | None]:
    """The curves of a stage: its objective, and what tells whether it goes astray."""
    if task == "dpo":
        return [
            charts.curve(rows, "dpo/loss", "loss", "nats per pair", held_out="eval/loss"),
            charts.curve(rows, "dpo/accuracy", "accuracy", "", held_out="eval/accuracy"),
            charts.curve(rows, "dpo/margin", "margin", "nats times beta", held_out="eval/margin"),
            charts.curve(rows, "dpo/logp_chosen_nats", "log-probability of the chosen", "nats"),
        ]
    if task == "grpo":
        return [
            charts.curve(rows, "grpo/score", "proxy reward", "reward units", held_out="eval/proxy_score"),
            charts.curve(rows, "grpo/kl_nats_per_sequence", "KL", "nats per answer", held_out="eval/kl_nats"),
            charts.curve(rows, "grpo/constant_group_fraction", "share of groups without a difference", ""),
        ]
    return [charts.curve(rows, "sft/nats_per_token", "loss", "nats per token", held_out="eval/nats_per_token")]
