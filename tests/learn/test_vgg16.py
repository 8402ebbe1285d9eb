import pytest
import torch

from vgg16_xray import config
from vgg16_xray.errors import UserError
from vgg16_xray.learn.heads import HEADS, AverageAndMaximum, Pooled
from vgg16_xray.learn.vgg16 import CUTS, VGG16, build, feature_shape, layer_table, published_parameters, split_at

# The numbers of torchvision's vgg16, written out: nothing here is derived from the code under test.
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
POOLS = (4, 9, 16, 23, 30)


def names(*layers: str) -> list[str]:
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


@pytest.fixture(scope="module")
def model() -> VGG16:
    torch.manual_seed(0)
    return build(classes=4, head="gap", dropout=0.0)


def test_names_are_torchvisions():
    with torch.device("meta"):
        whole = build(classes=1000, head="vgg", dropout=0.5)
    expected = names(*(f"features.{i}" for i in CONVOLUTIONS), "classifier.0", "classifier.3", "classifier.6")
    assert list(whole.state_dict()) == expected
    assert tuple(i for i, layer in enumerate(whole.features) if isinstance(layer, torch.nn.MaxPool2d)) == POOLS
    assert sum(p.numel() for p in whole.features.parameters()) == 14_714_688
    assert sum(p.numel() for p in whole.parameters()) == 138_357_544


@pytest.mark.parametrize(
    ("head", "tensors", "parameters"),
    [
        ("linear", names("classifier.1"), 25_088 * 3 + 3),
        ("gap", ["classifier.1.mean", "classifier.1.deviation", *names("classifier.3")], 1_024 * 3 + 3),
        ("vgg", names("classifier.0", "classifier.3", "classifier.6"), 119_545_856 + 4_096 * 3 + 3),
    ],
)
def test_a_head_has_these_tensors(head, tensors, parameters):
    with torch.device("meta"):
        classifier = build(classes=3, head=head, dropout=0.5).classifier
    assert [f"classifier.{name}" for name in classifier.state_dict()] == tensors
    assert sum(p.numel() for p in classifier.parameters()) == parameters
    assert classifier(torch.empty(2, 512, 7, 7, device="meta")).shape == (2, 3)


def test_dense_layers_start_as_keras_dense_does():
    torch.manual_seed(0)
    layer = HEADS["linear"](4, 0.0)[1]
    bound = (6 / (25_088 + 4)) ** 0.5
    assert not layer.bias.any()
    assert bound * 0.99 < layer.weight.abs().max() <= bound
    assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.01)


def test_weights_depend_on_the_seed_alone():
    def head_of(seed):
        torch.manual_seed(seed)
        return build(classes=3, head="gap", dropout=0.3).state_dict()["classifier.3.weight"]

    assert torch.equal(head_of(5), head_of(5))
    assert not torch.equal(head_of(5), head_of(6))


def test_the_pooled_head_sees_averages_then_maxima():
    pool = HEADS["gap"](2, 0.0)[0]
    x = torch.arange(2 * 2 * 3 * 3, dtype=torch.float32).reshape(2, 2, 3, 3)
    assert pool(x).tolist() == [[4, 13, 8, 17], [22, 31, 26, 35]]


def test_the_pooled_head_standardises_what_it_has_measured():
    layer = HEADS["gap"](2, 0.0)[1]
    torch.manual_seed(0)
    films = (torch.randn(50, 1024) + 7) * torch.logspace(-2, 2, 1024)
    films[:, 3] = 5.0  # never changes
    assert torch.equal(layer(films), films)  # nothing measured yet
    layer.measure(films)
    out = layer(films)
    varying = torch.arange(1024) != 3
    assert out.mean(dim=0).abs().max() < 1e-3
    assert torch.allclose(out[:, varying].std(dim=0, correction=0), torch.tensor(1.0), atol=1e-3)
    assert not out[:, 3].any()
    assert not list(layer.parameters())


@pytest.mark.parametrize("head", ["gap", "vgg"])
def test_dropout_is_where_the_recipe_says(head):
    with torch.device("meta"):
        classifier = HEADS[head](2, 0.25)
    rates = [layer.p for layer in classifier if isinstance(layer, torch.nn.Dropout)]
    assert rates == ([0.25] if head == "gap" else [0.25, 0.25])


@pytest.mark.parametrize("train_from", CUTS)
def test_frozen_prefix_and_trainable_rest_give_what_the_whole_gives(model, train_from):
    x = torch.rand(1, 3, 64, 64)
    prefix, rest = split_at(model, train_from)
    with torch.no_grad():
        between = prefix(x.clone())
        assert between.shape[1:] == feature_shape(train_from, 64, head="gap")
        assert torch.equal(rest(between), model(x.clone()))


def test_a_network_of_four_blocks_is_the_beginning_of_the_whole(model):
    four = build(classes=4, head="gap", dropout=0.0, blocks=4)
    assert [str(layer) for layer in four.features] == [str(layer) for layer in model.features[:24]]
    prefix, rest = split_at(four, "head")
    assert [name for name, _ in rest.named_parameters()] == ["classifier.3.weight", "classifier.3.bias"]
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        between = prefix(x)
        assert torch.equal(rest(between), four(x))
    assert between.shape[1:] == feature_shape("head", 64, head="gap", blocks=4)
    assert feature_shape("head", 64, blocks=4) == feature_shape("block5", 64)
    assert feature_shape("block4", 64, blocks=4) == feature_shape("block4", 64)
    assert [layer.trainable for layer in layer_table(four, "block4") if layer.parameters] == [False] * 7 + [True] * 4
    for ask in (lambda: split_at(four, "block5"), lambda: feature_shape("block5", blocks=4)):
        with pytest.raises(UserError, match="train_from: must be one of the 4 blocks that there are, found 'block5'"):
            ask()


def test_of_an_odd_side_the_last_row_and_column_count_too(model):
    assert feature_shape("head", 112) == (512, 4, 4)
    x = torch.zeros(1, 3, 112, 112)
    x[..., 96:, 96:] = 1  # the last of 7 x 7 places
    prefix, _ = split_at(model, "block5")
    with torch.no_grad():
        with_corner, without = (model.features(pixels) for pixels in (x, torch.zeros_like(x)))
        assert prefix(x).shape[1:] == feature_shape("block5", 112)
    assert with_corner.shape[1:] == (512, 4, 4)
    assert (with_corner != without)[..., 3, 3].any()


@pytest.mark.parametrize(
    ("train_from", "shape", "first"),
    [
        ("head", (512, 7, 7), None),
        ("block5", (512, 14, 14), 24),
        ("block4", (256, 28, 28), 17),
        ("block3", (128, 56, 56), 10),
        ("block2", (64, 112, 112), 5),
        ("all", (3, 224, 224), 0),
    ],
)
def test_training_begins_behind_a_pool(model, train_from, shape, first):
    assert feature_shape(train_from) == shape
    prefix, rest = split_at(model, train_from)
    trained = [i for i in CONVOLUTIONS if first is not None and i >= first]
    assert [name for name, _ in rest.named_parameters()] == names(*(f"features.{i}" for i in trained), "classifier.3")
    assert set(rest.state_dict()) <= set(model.state_dict())
    assert list(prefix.state_dict()) == names(*(str(i) for i in CONVOLUTIONS if i not in trained))


def test_gradients_are_only_where_training_happens(model):
    split_at(model, "all")  # an earlier cut elsewhere must leave no trace
    prefix, rest = split_at(model, "block5")
    model.zero_grad(set_to_none=True)
    rest(prefix(torch.rand(1, 3, 64, 64))).sum().backward()
    got = [name for name, p in model.named_parameters() if p.grad is not None]
    assert got == names("features.24", "features.26", "features.28", "classifier.3")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == got
    assert not prefix.training


@pytest.mark.parametrize("head", HEADS)
def test_the_head_alone_trains_on_pooled_numbers_where_it_pools(head):
    with torch.device("meta"):
        network = build(classes=2, head=head, dropout=0.0)
        prefix, rest = split_at(network, "head")
        between = prefix(torch.empty(2, 3, 224, 224))
        assert between.shape[1:] == feature_shape("head", head=head) == ((1024, 1, 1) if head == "gap" else (512, 7, 7))
        assert rest(between).shape == (2, 2)
    # A state that was saved before the pooling moved into the prefix still fits.
    assert list(rest.state_dict()) == [name for name in network.state_dict() if name.startswith("classifier.")]


def test_pooling_in_the_prefix_is_in_float32_whatever_the_engine():
    x = torch.rand(2, 512, 7, 7).to(torch.bfloat16)
    assert torch.equal(Pooled()(x)[..., 0, 0], AverageAndMaximum()(x.float()))


def test_a_step_on_the_rest_is_a_step_on_the_whole(model):
    _, rest = split_at(model, "head")
    before = model.classifier[3].bias.detach().clone()
    with torch.no_grad():
        rest.get_parameter("classifier.3.bias").add_(1)
    assert torch.equal(model.classifier[3].bias, before + 1)


def test_layer_table_tells_shapes_parameters_and_what_is_trained(model):
    seed_state, training = torch.get_rng_state(), model.training
    table = layer_table(model, "block5")
    rows = {layer.name: layer for layer in table}
    assert [layer.name for layer in table] == [
        *(f"features.{i}" for i in range(31)),
        *(f"classifier.{i}" for i in range(4)),
    ]
    assert (rows["features.0"].kind, rows["features.0"].shape, rows["features.0"].parameters) == (
        "Conv2d",
        (64, 224, 224),
        1_792,
    )
    assert rows["features.10"].shape == (256, 56, 56)
    assert (rows["features.30"].kind, rows["features.30"].shape) == ("MaxPool2d", (512, 7, 7))
    assert (rows["classifier.0"].shape, rows["classifier.3"].shape) == ((1024,), (4,))
    assert sum(layer.parameters for layer in table) == 14_714_688 + 4_100
    assert [layer.name for layer in table if layer.trainable] == [
        "features.24",
        "features.26",
        "features.28",
        "classifier.3",
    ]
    assert sum(layer.parameters for layer in table if layer.trainable) == 7_079_424 + 4_100
    # It leaves no trace: neither on the random numbers nor on the model.
    assert torch.equal(seed_state, torch.get_rng_state())
    assert model.training == training
    assert not any(module._forward_hooks for module in model.modules())


def test_unknown_names_are_refused_in_one_line(model):
    with pytest.raises(UserError, match=r"head: must be one of linear, gap, vgg, found 'resnet'"):
        build(classes=4, head="resnet", dropout=0.0)
    with pytest.raises(UserError, match=r"train_from: must be one of head, block5, .*, found 'block6'"):
        split_at(model, "block6")
    with pytest.raises(UserError, match=r"classes: must be 2 or more, found 1"):
        build(classes=1, head="gap", dropout=0.0)
    with pytest.raises(UserError, match=r"dropout: must be at least 0 and below 1, found 1\.0"):
        build(classes=4, head="gap", dropout=1.0)
    for blocks in (3, 6, "4"):
        with pytest.raises(UserError, match=rf"blocks: must be 4 or 5, found {blocks!r}"):
            build(classes=4, head="gap", dropout=0.0, blocks=blocks)


def test_recipes_offer_what_the_network_has():
    assert tuple(HEADS) == config.HEADS
    assert tuple(CUTS) == config.TRAIN_FROM


def test_the_published_network_is_counted_without_making_it() -> None:
    assert published_parameters() == 138_357_544
