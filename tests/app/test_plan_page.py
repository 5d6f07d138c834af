"""The page that plans: the commands that it shows do what it shows, and it plans as controls move."""

import json
import re
import shlex
import shutil
from dataclasses import replace

import pytest
from app_process import serve, stop

from app.wishes import CPU, CUSTOM, HERE, Wishes
from engine.errors import ConfigError
from engine.planning.hardware import GIB, Hardware, detect
from engine.planning.planner import make_plan

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
USUAL = Wishes(2_800_000, None, "8gb", None, MINILM, 96, 128, "auto", True, 0.5)
WISHES = {
    "as it comes": {},
    "another amount": {"card": CUSTOM, "memory_gib": 9.5},
    "a fan-in": {"fan_in": "64", "encoder": "google-bert/bert-base-uncased"},
    "dense": {"labels": 100_000, "fan_in": "dense"},
    "frozen": {"trained": False, "tokens": 32, "batch_size": 64, "reserve_gib": 1.25},
    "the processor": {"card": CPU, "labels": 5000, "trained": False},
}


def wished(**changes):
    return replace(USUAL, **changes)


@pytest.mark.parametrize("changes", WISHES.values(), ids=WISHES)
def test_the_command_shown_makes_the_plan_shown(changes, capsys):
    from engine.cli import main

    wishes = wished(**changes)
    assert main([*shlex.split(wishes.plan_command(None))[1:], "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    planned = make_plan(wishes.problem(None, None)).to_json()
    if wishes.card == CPU:  # whose memory is what is free at that moment
        assert printed["budget_bytes"] == pytest.approx(planned.pop("budget_bytes"), rel=0.1)
    assert {key: printed[key] for key in planned} == planned


@pytest.mark.parametrize("trained", [False, True])
def test_the_processor_is_planned_for_as_a_training_plans(trained):
    problem = wished(card=CPU, labels=5000, trained=trained).problem(None, None)
    training = replace(problem, hardware=detect("cpu"))
    assert make_plan(problem).predicted_bytes == make_plan(training).predicted_bytes


def test_the_processor_that_the_machine_has_found_is_that_of_a_training(tmp_path):
    from app.jobs import Jobs
    from app.machine import KIND, REMEMBERED, Machine

    memory = {"usable": 16 * GIB, "free": 12 * GIB}
    (tmp_path / REMEMBERED).write_text(json.dumps({"device": "cpu", "memory": memory, "cpu": {"cores": 2}}))
    machine = Machine(Jobs(tmp_path))
    found = machine.hardware()
    for job in machine.jobs.list(KIND):
        machine.jobs.stop(job.id)
    assert (found.compute, found.free_bytes) == (detect("cpu").compute, 12 * GIB)


def test_the_plan_says_for_which_length_of_text_it_is():
    from app.plan_view import why

    problem = wished(tokens=64).problem(None, None)
    words = re.sub("<[^>]+>", "", why(problem, make_plan(problem)))
    assert "The longest text has 64 tokens here; a training counts those of its data" in words


@pytest.mark.parametrize("changes", WISHES.values(), ids=WISHES)
def test_the_training_shown_has_the_settings_shown(changes, capsys):
    from engine.cli import main

    wishes = wished(**changes, data="python-stdlib")
    assert main([*shlex.split(wishes.train_command(None, "runs"))[1:], "--dry-run", "--json"]) == 0
    printed = {key: entry["value"] for key, entry in json.loads(capsys.readouterr().out).items()}
    config = wishes.problem(None, None).config.flat() | {"data.path": "python-stdlib"}
    assert printed == config


def test_a_card_that_is_not_here_is_not_trained_on():
    big, small = (Hardware("cuda", "a card", size * GIB, 8, "bf16", size * GIB) for size in (24, 6))
    here = Hardware("cpu", "CPU", 16 * GIB, 4, "fp32", 16 * GIB)
    wishes = wished(fan_in="64")
    assert wishes.overrides(big, "24gb") == {"profile": "8gb", "classifier.fan_in": 64}
    for hardware, profile in ((small, "6gb"), (here, "cpu"), (None, None)):
        taken = wishes.overrides(hardware, profile)
        assert (taken["profile"], taken["classifier.fan_in"]) == ("auto", 64)
        assert "hardware.memory_gib" not in taken


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "whole number above 0"),
        ({"labels": 0}, "whole number above 0"),
        ({"encoder": " "}, "choose an encoder"),
        ({"encoder": "nobody/nothing"}, "is unknown here"),
        ({"encoder": "../../etc"}, "is unknown here"),
        ({"card": CUSTOM, "memory_gib": None}, "memory_gib"),
        ({"card": HERE}, "not known yet"),
        ({"fan_in": "2048"}, "exceeds the 384 features"),
        ({"tokens": 2048}, "exceeds the encoder's 512 positions"),
    ],
)
def test_what_cannot_be_planned_is_said(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(wished(**changes).problem(None, None))


def test_no_folder_is_looked_into_for_a_client(tiny_encoder):
    with pytest.raises(ConfigError, match="is unknown here"):
        wished(encoder=str(tiny_encoder), tokens=16).problem(None, None)


# In a browser


@pytest.fixture(scope="module")
def address(tmp_path_factory, tiny_dataset):
    folder = tmp_path_factory.mktemp("plan")
    shutil.copytree(tiny_dataset, folder / "datasets" / "tiny")
    process, address = serve(folder / "runs", cwd=folder)
    yield address
    stop(process)


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    page.get_by_role("tab", name="Plan").click()
    yield page
    page.close()


def choose(page, label, option):
    page.get_by_label(label, exact=True).filter(visible=True).click()
    page.get_by_role("option", name=option).first.click()


def test_moving_a_control_changes_the_plan_and_the_command(page):
    choose(page, "Dataset", "No data yet: a number of labels")
    choose(page, "Plan for", "8 GB")
    page.get_by_label("Number of labels").fill("2800000")
    plan = page.locator("#plan")
    plan.get_by_text("192 of 384").wait_for()
    before = plan.locator(".stack").get_attribute("aria-label")
    choose(page, "Features a label reads (fan-in)", "64")
    plan.get_by_text("64 of 384").wait_for()
    assert plan.locator(".stack").get_attribute("aria-label") != before
    command = page.locator("#plan-commands code").first
    expect = pytest.importorskip("playwright.sync_api").expect
    expect(command).to_have_text("engine plan --labels 2800000 --profile 8gb --set classifier.fan_in=64")
    slider = page.get_by_label("number input for Texts a step (batch size)")
    slider.fill("256")
    slider.press("Tab")
    command.get_by_text("--batch-size 256").wait_for()


def test_when_nothing_fits_the_page_says_what_would(page):
    choose(page, "Dataset", "No data yet: a number of labels")
    choose(page, "Plan for", "4 GB")
    page.get_by_label("Number of labels").fill("900000000")
    page.get_by_text("Nothing fits: 900,000,000 labels need").wait_for()
    page.locator("#plan").get_by_text(re.compile("^At most")).wait_for()
    changes = page.locator("#plan .reasons li").all_inner_texts()
    assert len(changes) == 3
    assert changes[2].startswith("classifier.weight_dtype=fp8 and at most")
    assert page.locator("#plan-commands code").count() == 0


def test_a_dataset_and_its_settings_go_along_to_the_training(page):
    choose(page, "Dataset", "tiny")
    choose(page, "Plan for", "8 GB")
    choose(page, "Features a label reads (fan-in)", "64")
    page.locator("#plan").get_by_text("64 of 384").wait_for()
    assert page.get_by_label("Number of labels").count() == 0
    assert "--data datasets/tiny" in page.locator("#plan-commands").inner_text()
    page.get_by_role("button", name="Train with these settings").click()
    page.locator("#start").wait_for()
    page.wait_for_function("""() => {
        const seen = [...document.querySelectorAll('input, textarea')].filter(field => field.offsetParent);
        return seen.some(field => field.value == '64') && seen.some(field => field.value.startsWith('tiny'));
    }""")


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address)
    page.get_by_role("tab", name="Plan").click()
    choose(page, "Plan for", "8 GB")
    page.locator("#plan .tile").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
