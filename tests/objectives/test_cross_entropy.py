import pytest
import torch
import torch.nn.functional as F

from allsight.objectives import label_weight, pixel_cross_entropy, pixel_weight, soft_cross_entropy

WEIGHTS = (0.5, 2.0, 1.0, 0.0, 3.0)


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(9, 5, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 4, 4, 1, 0, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_hard_labels_give_the_loss_of_pytorch(logits, labels, smoothing, weights):
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    actual = soft_cross_entropy(logits, labels, label_smoothing=smoothing, class_weights=weights)
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_one_hot_soft_label_is_the_hard_label(logits, labels, weights):
    soft = F.one_hot(labels, 5).float()
    options = {"label_smoothing": 0.1, "class_weights": weights}
    torch.testing.assert_close(
        soft_cross_entropy(logits, soft, **options), soft_cross_entropy(logits, labels, **options)
    )
    assert label_weight(soft, class_weights=weights) == label_weight(labels, class_weights=weights)


def test_soft_labels_without_weights_give_the_loss_of_pytorch(logits):
    soft = torch.rand(9, 5, dtype=torch.float64).softmax(dim=1)
    torch.testing.assert_close(soft_cross_entropy(logits, soft), F.cross_entropy(logits, soft))


@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_parts_weighed_by_their_weight_make_the_whole_loss_and_gradient(logits, labels, weights, is_soft):
    if is_soft:
        labels = torch.rand(9, 5, dtype=torch.float64).softmax(dim=1)
    options = {"label_smoothing": 0.1, "class_weights": weights}
    whole = soft_cross_entropy(logits, labels, **options)
    (expected,) = torch.autograd.grad(whole, logits)

    total = label_weight(labels, class_weights=weights)
    split = 0.0
    for rows in (slice(0, 1), slice(1, 4), slice(4, 9)):
        share = label_weight(labels[rows], class_weights=weights) / total
        split = split + share * soft_cross_entropy(logits[rows], labels[rows], **options)
    torch.testing.assert_close(split, whole, rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.autograd.grad(split, logits)[0], expected, rtol=1e-12, atol=1e-16)


def test_a_batch_without_weight_is_a_zero_that_keeps_its_graph(logits):
    labels = torch.full((9,), 3)
    loss = soft_cross_entropy(logits, labels, class_weights=WEIGHTS)
    assert loss.item() == 0.0
    assert label_weight(labels, class_weights=WEIGHTS) == 0.0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_pixels_give_the_loss_of_pytorch_over_labelled_pixels(weights):
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 3, 4), dtype=torch.uint8)
    labels[0, 1] = 255
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, labels.long(), weight=weight, ignore_index=255)
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, class_weights=weights), expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_pictures_weighed_by_their_pixels_make_the_loss_of_the_batch(weights):
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (3, 4, 4), dtype=torch.uint8)
    labels[0, :3] = 255
    labels[1] = 255
    whole = pixel_cross_entropy(logits, labels, class_weights=weights)
    total = pixel_weight(labels, class_weights=weights)
    split = sum(
        pixel_weight(labels[i : i + 1], class_weights=weights)
        / total
        * pixel_cross_entropy(logits[i : i + 1], labels[i : i + 1], class_weights=weights)
        for i in range(3)
    )
    torch.testing.assert_close(split, whole, rtol=1e-14, atol=0)


def test_pictures_without_labels_are_a_zero_that_keeps_its_graph():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.full((2, 4, 4), 255, dtype=torch.uint8)
    assert pixel_weight(labels) == 0.0
    loss = pixel_cross_entropy(logits, labels)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
