import pytest

from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.errors import CaptureError

TOY = {"depth": 18, "width": 8, "image_size": 32, "num_classes": 10}


def test_micro_batch_of_one_value_per_channel_is_refused_by_name() -> None:
    captured = capture(load_target("examples/resnet.py", TOY))
    with pytest.raises(CaptureError, match=r"micro-batch 1, BatchNorm 'stages\.3\.0.*larger micro-batch"):
        captured.at(1)
    assert captured.at(2).micro_batch == 2
