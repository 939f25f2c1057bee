"""The console's statistics and jobs: asked for, drawn, downloaded, cancelled."""

import csv
import io
import json

import pytest
from conftest import wait_until
from http_calls import PLAYS, PLAYS_SUMMED, answer_of, ask, get
from playwright.sync_api import expect
from survey_oracle import QUESTION, SURVEY_HEADER, survey_csv, survey_oracle
from test_console_groups import bars
from uploads import stream

QUEUED = 500  # statistics, which are computed one after the other
QUEUED_ROWS = 400_000  # of each


def survey_rows() -> list:
    return list(csv.DictReader(io.StringIO(survey_csv().decode())))


def decimal(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def drawn(figure) -> list:
    """The bars of a figure, once it is there."""
    expect(figure).to_be_visible()
    return bars(figure)


def test_a_statistic_is_computed_and_drawn(server, open_console):
    stream(server, survey_csv())
    rows = survey_rows()
    console = open_console(server.http, "#/statistics")
    console.page.locator("select[name=question]").select_option(QUESTION)
    means = survey_oracle("states_mean", rows)
    figure = console.chart("Mean of each state")
    overall = survey_oracle("global_mean", rows)["global_mean"]
    expect(figure).to_contain_text(f"mean of all rows {decimal(overall)}")
    assert drawn(figure) == [[state, decimal(mean)] for state, mean in means.items()]
    console.page.get_by_role("link", name="Best and worst").click()
    for title, route in (("The five best states", "best5"), ("The five worst states", "worst5")):
        assert drawn(console.chart(title)) == [[s, decimal(m)] for s, m in survey_oracle(route, rows).items()]
    console.page.get_by_role("link", name="Difference from the mean").click()
    expected = answer_of(server, "diff_from_mean", {"question": QUESTION})
    assert drawn(console.chart("Mean of all rows minus")) == [[s, decimal(m)] for s, m in expected.items()]
    console.page.get_by_role("link", name="By category").click()
    expect(console.table("Means by state and category")).to_be_visible()
    console.page.locator("select[name=state]").select_option("Ohio")
    figure = console.chart("Ohio: mean of Data_Value by Income")
    of_ohio = survey_oracle("state_mean_by_category", rows, "Ohio")["Ohio"]
    assert drawn(figure) == [["$15,000 - $24,999", decimal(of_ohio["('Income', '$15,000 - $24,999')"])]]


def test_the_result_of_a_statistic_is_downloaded(server, open_console):
    stream(server, survey_csv())
    console = open_console(server.http, "#/statistics")
    expect(console.chart("Mean of each state")).to_be_visible()
    console.page.get_by_role("link", name="Jobs", exact=True).click()
    row = console.table("Jobs").get_by_role("row").filter(has_text="job_id_1")
    expect(row).to_contain_text("statistic")
    with console.page.expect_download() as download:
        row.get_by_role("link", name="Download the result of job_id_1").click()
    assert download.value.suggested_filename == "job_id_1.json"
    assert json.loads(download.value.path().read_text()) == get(server, "/api/get_results/job_id_1").json()


def test_a_task_is_started_and_its_result_downloaded(server, open_console, tmp_path):
    plays = tmp_path / "plays.csv"
    plays.write_bytes(PLAYS)
    console = open_console(server.http, "#/jobs")
    expect(console.heading("No jobs yet")).to_be_visible()
    console.page.get_by_label("CSV file").set_input_files(plays)
    console.page.get_by_role("button", name="Start the task").click()
    row = console.table("Jobs").get_by_role("row").filter(has_text="file task")
    expect(row).to_contain_text("done")
    with console.page.expect_download() as download:
        row.get_by_role("link", name="Download the result").click()
    assert download.value.path().read_text() == PLAYS_SUMMED
    expect(row).to_contain_text("downloaded")
    # The file did not become part of the table.
    assert server.parts() == []


def test_a_task_that_fails_says_where(server, open_console, tmp_path):
    wrong = tmp_path / "wrong.csv"
    wrong.write_bytes(b"Song,Date,Number of Plays\na,2020-01-01,many\n")
    console = open_console(server.http, "#/jobs")
    console.page.get_by_label("CSV file").set_input_files(wrong)
    console.page.get_by_role("button", name="Start the task").click()
    row = console.table("Jobs").get_by_role("row").filter(has_text="file task")
    expect(row).to_contain_text("failed")
    expect(row).to_contain_text("many")
    console.page.get_by_role("link", name="Failed").click()
    assert console.page.url.endswith("state=failed")
    expect(row).to_be_visible()


@pytest.mark.parametrize("way", ["another view", "another statistic", "another page"])
def test_statistics_are_cancelled_when_they_are_left(start_server, open_console, tmp_path, way):
    server = start_server(tmp_path / "data", "--statistics-at-once", "1", prefix=("nice", "-n", "19"))
    rows = "".join(f"{QUESTION},State {row % 50},{row % 100},Sex,Female\n" for row in range(QUEUED_ROWS))
    stream(server, f"{SURVEY_HEADER}\n{rows}".encode())
    for _ in range(QUEUED):
        ask(server, "states_mean", {"question": QUESTION})
    # Those of the view wait for all others.
    asked = [f"job_id_{QUEUED + 1}", f"job_id_{QUEUED + 2}"]
    console = open_console(server.http, "#/statistics")
    for job in asked:
        # A page that is left cannot cancel a job whose number has not arrived there.
        with console.page.expect_request(lambda request: request.url.endswith(f"/api/get_results/{job}")):  # noqa: B023
            pass
    if way == "another view":
        console.page.get_by_role("link", name="Overview", exact=True).click()
    elif way == "another statistic":
        console.page.get_by_role("link", name="By category").click()
    else:
        console.page.goto("about:blank")
    for job in asked:
        wait_until(lambda: get(server, f"/api/jobs/{job}").json()["state"] == "failed", f"the cancellation of {job}")  # noqa: B023
        assert "cancelled" in get(server, f"/api/jobs/{job}").text
    assert get(server, f"/api/jobs/job_id_{QUEUED}").json()["state"] != "failed"


def test_a_job_is_cancelled_while_it_waits(start_server, open_console, tmp_path):
    # It has less of a busy processor than the browser.
    server = start_server(tmp_path / "data", "--statistics-at-once", "1", prefix=("nice", "-n", "19"))
    rows = "".join(f"{QUESTION},State {row % 50},{row % 100},Sex,Female\n" for row in range(QUEUED_ROWS))
    stream(server, f"{SURVEY_HEADER}\n{rows}".encode())
    console = open_console(server.http, "#/jobs")
    expect(console.heading("No jobs yet")).to_be_visible()
    # The last one waits for all others.
    for _ in range(QUEUED):
        job_id = ask(server, "states_mean", {"question": QUESTION}).json()["job_id"]
    row = console.table("Jobs").get_by_role("row").filter(has=console.page.get_by_text(job_id, exact=True))
    row.get_by_role("button", name=f"Cancel {job_id}").click()
    expect(row).to_contain_text("failed")
    expect(row).to_contain_text("cancelled")
    assert get(server, f"/api/jobs/{job_id}").json()["state"] == "failed"
