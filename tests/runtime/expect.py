"""What results of the bodies have to say, for tests of many kinds of plans."""

from tests.runtime.world import check


def assert_equal(found, num_ranks):
    """A verification found no difference from one process; returns its report."""
    report = check(found, num_ranks)[0]
    assert report is not None and report["ok"], report
    assert report["worst_gradient_error"] < 1e-9
    return report


def assert_statistics_equal(found, num_ranks):
    """As ``assert_equal``, with the buffers: BatchNorm's statistics advance once, recomputed or not."""
    report = assert_equal(found, num_ranks)
    assert report["worst_buffer_error"] is not None and report["worst_buffer_error"] < 1e-12


def assert_clipped(found, num_ranks):
    """The norm of the gradients, and the parameters after clipped updates, are those of one process."""
    for result in check(found, num_ranks):
        assert result["norm"] < 1e-12
        assert result["parameters"] < 1e-9


def assert_close(found, num_ranks):
    """Computed in half precision: near float32, with parameters and gradients in float32."""
    for result in check(found, num_ranks):
        assert result["dtypes"] == ["torch.float32"]
        assert result["loss"] < 0.01 and result["gradient"] < 0.02
        assert result["falls"] > 0


def assert_refused(found, num_ranks, mistake, message):
    """Every rank says what is wrong with a user's mistake."""
    for result in check(found, num_ranks):
        assert result[mistake].startswith("UsageError: ")
        assert message in result[mistake]
