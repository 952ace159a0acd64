"""The convolutional actor-critic: what it takes for an image, and that it learns from one."""

import pytest
import torch
from torch import Tensor

from rlx.agent import ConvActorCritic
from rlx.agent.convolution import channels_first, image_size
from rlx.data import DictTensor, EnvSpecs, Spec
from rlx.errors import AgentError

ACTION = {"action": Spec((), torch.int64, kind="discrete", nvec=(3,))}
NUMBERS = {
    "filters": [4, 8],
    "kernel_sizes": [4, 3],
    "strides": [2, 1],
    "hidden_size": 16,
    "activation": "relu",
    "log_std_init": 0.0,
}


def specs(**observation: Spec) -> EnvSpecs:
    return EnvSpecs({key.replace("__", "/"): spec for key, spec in observation.items()}, ACTION)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((20, 24), (1, 20, 24)),
        ((4, 20, 24), (4, 20, 24)),
        ((20, 24, 3), (3, 20, 24)),
        ((1, 20, 24), (1, 20, 24)),
        ((4, 20, 24, 3), (12, 20, 24)),
        ((4, 3, 20, 24), (12, 20, 24)),
    ],
)
def test_an_image_is_understood_whatever_the_order_of_its_axes(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    spec = Spec(shape, torch.uint8)
    assert image_size(spec) == size
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    seen = channels_first(images, spec)
    assert seen.shape == (2, *size)
    if shape == (4, 20, 24, 3):  # frame f, pixel (y, x), colour c
        assert seen[1, 2 * 3 + 1, 5, 7] == images[1, 2, 5, 7, 1]
    agent = ConvActorCritic(specs(obs=spec), **NUMBERS)
    outputs, _ = agent(DictTensor({"obs": images}), DictTensor.empty(2), DictTensor.empty(2))
    assert (outputs["logits"].shape, outputs["value"].shape) == ((2, 3), (2,))


def test_images_and_numbers_are_seen_together_and_every_weight_learns() -> None:
    torch.manual_seed(0)
    agent = ConvActorCritic(
        specs(obs__camera=Spec((20, 24, 3), torch.uint8), obs__speed=Spec((2,), torch.float32)), **NUMBERS
    )
    seen = DictTensor(
        {"obs/camera": torch.randint(0, 256, (5, 20, 24, 3), dtype=torch.uint8), "obs/speed": torch.randn(5, 2)}
    )
    nothing = DictTensor.empty(5)
    outputs, _ = agent(seen, nothing, nothing)
    faster, _ = agent(seen | DictTensor({}, 5), nothing, nothing)
    assert torch.equal(outputs["value"], faster["value"])
    moved = DictTensor({"obs/camera": seen["obs/camera"], "obs/speed": seen["obs/speed"] + 1})
    assert not torch.allclose(agent(moved, nothing, nothing)[0]["value"], outputs["value"])
    (outputs["logits"].square().sum() + outputs["value"].sum()).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in agent.parameters())


def test_the_network_of_the_paper_has_its_size() -> None:
    agent = ConvActorCritic(
        specs(obs=Spec((4, 84, 84), torch.uint8)),
        filters=[32, 64, 64], kernel_sizes=[8, 4, 3], strides=[4, 2, 1], hidden_size=512, activation="relu",
        log_std_init=0.0,
    )  # fmt: skip
    trunk = sum(p.numel() for name, p in agent.named_parameters() if not name.startswith(("policy", "critic")))
    assert trunk == 1_684_128  # 8,224 + 32,832 + 36,928 + 3,136 * 512 + 512


@pytest.mark.parametrize("shape", [(4, 20, 24), (20, 24, 3)])
def test_however_pixels_lie_while_learning_values_and_gradients_are_those_of_plain_convolutions(
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    spec, nothing = Spec(shape, torch.uint8), DictTensor.empty(5)
    agent = ConvActorCritic(specs(obs=spec), **NUMBERS)
    images = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    kept: list[Tensor] = []
    layers = [layer for layer in agent.modules() if isinstance(layer, torch.nn.Conv2d)]
    layers[0].register_forward_pre_hook(lambda _, seen: kept.append(seen[0]))
    learned = agent(DictTensor({"obs": images}), nothing, nothing)[0]["value"]
    learned.sum().backward()
    gradients = [weight.grad.clone() for layer in layers for weight in layer.parameters() if weight.grad is not None]
    with torch.no_grad():
        acted = agent(DictTensor({"obs": images}), nothing, nothing)[0]["value"]
    assert kept[0].is_contiguous(memory_format=torch.channels_last)  # what makes learning faster on a CPU
    assert kept[1].stride() == channels_first(images, spec).stride()

    agent.zero_grad()
    seen = channels_first(images, spec).contiguous().float() / 255
    for layer in layers:
        seen = layer(seen).relu()
    plain = agent.critic(agent.hidden(seen.flatten(1)).relu())[:, 0]
    plain.sum().backward()
    torch.testing.assert_close(learned, plain)
    torch.testing.assert_close(acted, plain)
    expected = [weight.grad for layer in layers for weight in layer.parameters()]
    torch.testing.assert_close(gradients, expected)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(AgentError, match=r"looks at images.*obs torch.float32 \[4\]"):
        ConvActorCritic(specs(obs=Spec((4,), torch.float32)), **NUMBERS)
    with pytest.raises(AgentError, match="too small"):
        ConvActorCritic(specs(obs=Spec((5, 5), torch.uint8)), **NUMBERS)
    with pytest.raises(AgentError, match="as many numbers"):
        ConvActorCritic(specs(obs=Spec((20, 20), torch.uint8)), **(NUMBERS | {"strides": [1]}))
