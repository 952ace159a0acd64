"""What is applied between layers, and that its gradient is right where it writes over its input."""

import pytest
import torch
import torch.nn.functional as F

from rlx.agent.networks import ACTIVATIONS, Encoder, TwinMLP
from rlx.data import DictTensor, Spec
from rlx.errors import SpecError

PLAIN = {"tanh": torch.tanh, "relu": torch.relu, "elu": F.elu, "silu": F.silu}


def test_every_activation_has_a_plain_form_here() -> None:
    assert PLAIN.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients_are_those_of_the_plain_activation(name: str) -> None:
    torch.manual_seed(0)
    network = TwinMLP(3, (2, 1), hidden_sizes=(5, 4), activation=name, output_gains=(1.0, 1.0)).double()
    features = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    kept = features.detach().clone()

    def gradients(outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(sum(output.square().sum() for output in outputs), [features, *network.parameters()])

    def plain(k: int) -> torch.Tensor:
        hidden = features
        *inner, (last_weight, last_bias) = zip(network.weights, network.biases, strict=True)
        for weight, bias in inner:
            hidden = PLAIN[name](hidden @ weight[k] + bias[k])
        return (hidden @ last_weight[k] + last_bias[k])[:, : network.num_outputs[k]]

    found, expected = network(features), (plain(0), plain(1))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(network(features)), gradients(expected))
    torch.testing.assert_close(network.single(1)(features.detach()), expected[1].detach())
    assert torch.equal(features, kept)


def test_discrete_observations_are_one_hot_and_within_what_their_specs_say() -> None:
    level = Spec((), torch.int64, "discrete", nvec=(3,))
    cards = Spec((2,), torch.int64, "multi_discrete", nvec=(2, 3))
    encoder = Encoder({"obs/level": level, "obs/cards": cards})
    seen = {"obs/level": torch.tensor([2, 0]), "obs/cards": torch.tensor([[1, 0], [0, 2]])}
    assert encoder(DictTensor(seen)).tolist() == [[0, 0, 1, 0, 1, 1, 0, 0], [1, 0, 0, 1, 0, 0, 0, 1]]
    for key, value in (("obs/level", torch.tensor([1, 3])), ("obs/cards", torch.tensor([[1, 0], [0, -1]]))):
        wrong = int(value.flatten()[-1])
        with pytest.raises(SpecError, match=rf"the observation '{key}' shows {wrong}; expected 0 to 2"):
            encoder(DictTensor(seen | {key: value}))
