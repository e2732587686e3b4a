"""Summaries for TensorBoard, as `Summary.Value` messages of tensorboardX."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from runner.core.escape import make_printable

LONGEST_TAG, LONGEST_TEXT = 1_000, 200_000  # characters


THRESHOLDS = 127  # of a precision-recall curve; tensorboardX takes no more


def make_text(tag: str, markdown: str) -> Any:
    """Make a message of a text in Markdown."""
    from tensorboardX import summary

    said = make_printable(markdown)
    said = said if len(said) <= LONGEST_TEXT else said[: LONGEST_TEXT - 1] + "…"
    return summary.text(make_printable(tag)[:LONGEST_TAG], said).value[0]


def make_image(tag: str, png: bytes, width: int, height: int) -> Any:
    """Make a message of an RGB image."""
    from tensorboardX.proto.summary_pb2 import Summary

    picture = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
    return Summary.Value(tag=tag, image=picture)


def make_audio(tag: str, wav: bytes, rate: int, channels: int, frames: int) -> Any:
    """Make a message of a sound in a WAV file."""
    from tensorboardX.proto.summary_pb2 import Summary

    sound = Summary.Audio(sample_rate=rate, num_channels=channels, length_frames=frames, encoded_audio_string=wav)
    sound.content_type = "audio/wav"
    return Summary.Value(tag=tag, audio=sound)


def make_histogram(tag: str, counts: Tensor, low: float, high: float, total: float, squares: float) -> Any:
    """Make a message of counts [B] in equal bins from `low` to `high`, with sum and sum of squares."""
    from tensorboardX.proto.summary_pb2 import HistogramProto, Summary

    width = (high - low) / len(counts)
    limits = [low + width * number for number in range(1, len(counts))] + [high]
    bins = HistogramProto(
        min=low,
        max=high,
        num=float(counts.sum()),
        sum=total,
        sum_squares=squares,
        bucket_limit=[low, *limits],  # TensorBoard takes the left edge of a bin from the bin before it
        bucket=[0.0, *counts.tolist()],
    )
    return Summary.Value(tag=tag, histo=bins)


def make_pr_curve(tag: str, positives: Tensor, negatives: Tensor) -> Any:
    """Make a message of a precision-recall curve.

    Args:
        tag: its name.
        positives: [THRESHOLDS], positive samples by their score, floor(score * (THRESHOLDS - 1)).
        negatives: the same of negative ones.
    """
    from tensorboardX import summary

    tp, fp = (counts.double().flip(0).cumsum(0).flip(0).numpy() for counts in (positives, negatives))
    tn, fn = fp[0] - fp, tp[0] - tp
    precision, recall = tp / (tp + fp).clip(1e-7), tp / (tp + fn).clip(1e-7)
    curve = summary.pr_curve_raw(tag, tp, fp, tn, fn, precision, recall, num_thresholds=THRESHOLDS)
    return curve.value[0]


def make_hparams(values: Mapping[str, Any], status: str) -> list[Any]:
    """Make the two messages of a row on TensorBoard's hparams page.

    No `Experiment` is among them: TensorBoard would take the columns of all runs from one run's, where without it they
    are those that any of the runs has, the ones that differ first.

    Args:
        values: by name; numbers, booleans and strings.
        status: `completed`, `interrupted` or `failed`.
    """
    from tensorboardX.proto.api_pb2 import Status
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
    from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

    def message(tag: str, **content: Any) -> Any:
        data = HParamsPluginData(version=0, **content).SerializeToString()
        plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=data)
        return Summary.Value(tag=f"_hparams_/{tag}", metadata=SummaryMetadata(plugin_data=plugin))

    start = SessionStartInfo()
    for key, value in values.items():
        name = make_printable(key)[:LONGEST_TAG]
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = make_printable(value)[:LONGEST_TEXT]
    names = {"completed": "STATUS_SUCCESS", "failed": "STATUS_FAILURE"}
    end = SessionEndInfo(status=Status.Value(names.get(status, "STATUS_UNKNOWN")))
    return [message("session_start_info", session_start_info=start), message("session_end_info", session_end_info=end)]
