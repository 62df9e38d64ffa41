"""What the codes hold: functions on the scores of pairs, no model, no process group."""

from megatron_lpc.evaluation.information import Information, mutual_information
from megatron_lpc.evaluation.support import draw_support, held_out_pairs, support_mixtures

__all__ = ["Information", "draw_support", "held_out_pairs", "mutual_information", "support_mixtures"]
