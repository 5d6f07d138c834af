"""The form of a new training offers every setting, and means what the command line means."""

import shlex

import pytest

from app.settings import HIDDEN, MAIN, TITLES, WORDS, command, configuration, defaults, problem, settings
from engine.cli import FLAGS, build_parser
from engine.config import KEYS, parse_assignment, profile_names, resolve
from engine.errors import ConfigError


def test_every_key_is_offered_once_and_in_words():
    offered = [setting.key for setting in settings()]
    assert sorted(offered) == sorted(set(KEYS) - set(HIDDEN))
    assert offered[: len(MAIN)] == list(MAIN)
    assert set(TITLES) == set(WORDS) == set(offered), "the names of keys, and what the command line says, are no words"
    for section in {setting.section for setting in settings()}:
        titles = [setting.title for setting in settings() if setting.section == section]
        assert len(set(titles)) == len(titles), section


def test_a_choice_is_a_word_where_it_can_be_nothing_else():
    found = {setting.key: setting for setting in settings()}
    usual = ("as the profile says (no)", "")
    assert found["encoder.compile"].choices("false") == [usual, ("yes", "true"), ("no", "false")]
    assert found["encoder.trainable"].choices("none") == [usual, ("yes", "all"), ("no", "none")]
    assert found["rewire.method"].options == ("set", "rigl", "none")
    assert found["rewire.method"].choices("none")[3] == ("none", "none")
    assert found["encoder.optimizer_in_backward"].options == ("true", "false", "auto")
    assert found["classifier.fan_in"].options == found["training.epochs"].options == ()


@pytest.mark.parametrize("profile", profile_names())
def test_an_empty_form_is_the_profile(profile):
    config, origins, given = configuration(profile, dict.fromkeys(KEYS, ""), {})
    assert config == resolve(profile, {}, {})[0] and given == {}
    assert set(origins.values()) <= {"default", f"profile {profile}"}
    assert set(defaults(profile)) == set(KEYS)


def test_what_a_field_holds_can_be_typed_again():
    for key, text in defaults("8gb").items():
        assert problem("8gb", key, text) == "", key
        assert configuration("8gb", {key: text} if text else {}, {})[0][key] == resolve("8gb", {}, {})[0][key]


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("training.epochs", "-4", "-4 must be at least 1"),
        ("classifier.fan_in", "many", "'many' must be a whole number or auto or dense"),
        ("training.micro_batch", "1000", "1000 exceeds training.batch_size = 128; a step is made of micro-batches"),
        ("training.epochs", "  ", ""),
        ("training.epochs", " 7 ", ""),
    ],
)
def test_a_wrong_value_is_named_at_its_field(key, text, words):
    assert problem("cpu", key, text) == words


def test_values_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ConfigError, match="exceeds"):
        configuration("cpu", {"training.batch_size": "8", "training.micro_batch": "16"}, {})


def test_the_command_line_does_the_same():
    given = {"training.epochs": "3", "evaluation.k": "1,3"}
    always = {"data.path": "my data", "run.name": "it's mine"}
    words = shlex.split(command("8gb", given, always))
    options = build_parser().parse_args(words[1:])
    flags = {key: (getattr(options, flag.replace("-", "_")), flag) for flag, (key, _) in FLAGS.items()}
    typed, _ = resolve(
        options.profile,
        dict(parse_assignment(text) for text in options.set),
        {key: value for key, value in flags.items() if value[0] is not None},
    )
    assert typed == configuration("8gb", given, always)[0]
