"""Options of a format and names of splits as settings of a task."""

import pytest

from allsight.config import ConfigError, build, dump
from allsight.config.overrides import apply_overrides
from allsight.tasks import Captioning, Classification
from allsight.tasks.masked_language import MaskedLanguage


def changed(*texts):
    return apply_overrides(Classification.Config(data="imagefolder:tiny_imagenet20"), texts)


def test_options_reach_the_reader_in_the_types_that_the_format_states(real_data):
    config = changed("data_options.max_pixels='5000'", "data_options.leave_out=[val/n02]", "val_split=train")
    assert dict(config.data_options) == {"max_pixels": 5000, "leave_out": ("val/n02",)}
    assert build(Classification.Config, dump(config)) == config
    reader = Classification(config, name="t", root=real_data).reader("val")
    assert reader.split == "train" and reader._max_pixels == 5000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data_options.label=prefix", "imagefolder has no option 'label'; did you mean 'labels'"),
        ("data_options.min_side_px=many", "data_options: the option 'min_side_px' of imagefolder got 'many'"),
        ("data_options=3", "data_options: expected a mapping"),
        ("data_option.labels=prefix", r"no such field; did you mean 'data_options'"),
    ],
)  # fmt: skip
def test_wrong_options_are_named_before_anything_is_opened(override, message):
    with pytest.raises(ConfigError, match=message):
        changed(override)


def test_options_of_a_format_that_is_found_out_are_judged_when_it_is_opened(real_data):
    config = Captioning.Config(data="auto:tiny_imagenet20", data_options={"frames": 3})
    with pytest.raises(ConfigError, match="imagefolder has no option 'frames'"):
        Captioning(config, name="t", root=real_data).reader("train")


def test_what_a_task_and_its_options_both_say_is_refused(real_data):
    task = Classification(changed("labels=prefix", "data_options.labels=folder"), name="t", root=real_data)
    with pytest.raises(ConfigError, match=r"data_options\.labels: 'folder', but the task's own"):
        task.reader("train")


def test_masked_words_can_leave_the_pictures_unread(real_data):
    config = MaskedLanguage.Config(data="coco_captions:coco_small", data_options={"pictures": "false"})
    sample = MaskedLanguage(config, name="t", root=real_data).reader("train")[0]
    assert not sample.inputs and sample.targets["captions"]
