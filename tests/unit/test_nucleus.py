"""Top-p without a sort keeps just the tokens that vLLM's own keeps."""

from __future__ import annotations

from importlib import util

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")


def kept(logits_R_V: Tensor, p_R: Tensor, width: int) -> Tensor:
    """The tokens that remain."""
    from peers.engines.nucleus import nucleus_threshold

    return logits_R_V >= nucleus_threshold(logits_R_V, p_R, width)


def test_top_p_keeps_the_fewest_tokens_that_reach_p() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    for p, expected in ((0.39, [1]), (0.41, [1, 2]), (0.71, [1, 2, 3]), (0.91, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])):
        for width in (2, 4, 128):
            assert kept(logits, torch.tensor([p]), width)[0].nonzero()[:, 0].tolist() == expected, (p, width)


def test_all_tokens_tied_with_the_edge_are_kept() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    for width in (2, 5):
        assert kept(logits, torch.tensor([0.6]), width)[0].tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
@pytest.mark.parametrize("width", [8, 128, 1000])
def test_top_p_keeps_what_vllm_keeps(scale: float, width: int) -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    torch.manual_seed(0)
    logits, p = torch.randn(40, 1000) * scale, torch.linspace(0.05, 1.0, 40)
    expected = ~apply_top_k_top_p_pytorch(logits.clone(), None, p).isinf()
    found = kept(logits, p, width)
    # both add up float32 masses, in opposite directions: the token that crosses p may differ
    assert (found != expected).sum() <= 2
    assert found.sum(1).min() >= 1 and found[-1].all()


def test_only_requests_that_ask_are_masked() -> None:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from peers.engines.nucleus import Nucleus
    from peers.engines.protocol import Sampling
    from peers.engines.vllm import NUCLEUS, top_p

    processor = Nucleus(None, torch.device("cpu"), False)  # type: ignore[arg-type]
    asking, other = SamplingParams(**top_p(Sampling(0.7, 0.5, 8), on_gpu=False)), SamplingParams()
    assert asking.extra_args == {NUCLEUS: 0.5}
    assert top_p(Sampling(0.7, 0.5, 8), on_gpu=True) == {"top_p": 0.5}
    assert top_p(Sampling(0.0, 0.5, 8), on_gpu=False) == top_p(Sampling(0.7, 1.0, 8), on_gpu=True) == {}
    processor.update_state(BatchUpdate(2, removed=[], added=[(0, asking, None, []), (1, other, None, [])], moved=[]))
    masked = processor.apply(torch.tensor([[0.0, 5.0, 1.0]] * 2))
    assert masked.isinf().tolist() == [[True, False, True], [False, False, False]]
    processor.update_state(BatchUpdate(1, removed=[0], added=[], moved=[]))
    assert not processor.apply(torch.tensor([[0.0, 5.0, 1.0]])).isinf().any()
