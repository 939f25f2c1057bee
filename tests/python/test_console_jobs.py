"""The console's statistics and jobs: asked for, drawn, downloaded, cancelled."""

import csv
import io
import json
import re

from http_calls import PLAYS, PLAYS_SUMMED, answer_of, get, start_task
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import expect
from survey_oracle import QUESTION, survey_csv, survey_oracle
from test_console_groups import bars
from uploads import stream


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


def test_a_task_is_cancelled_before_it_ends(server, open_console):
    console = open_console(server.http, "#/jobs")
    expect(console.heading("No jobs yet")).to_be_visible()
    # Which is faster is open: the tasks, or the browser. So there is more to do each time.
    for rows in (200_000 << attempt for attempt in range(6)):
        # Each row is a group of its own, which takes longer.
        content = ("Song,Date,Number of Plays\n" + "".join(f"{row},,1\n" for row in range(rows))).encode()
        task_id = [start_task(server, content) for _ in range(3)][-1]
        row = console.table("Jobs").get_by_role("row").filter(has_text=task_id)
        cancel = row.get_by_role("button", name=f"Cancel {task_id}")
        expect(cancel.or_(row.get_by_text(re.compile("^(done|failed)")))).to_be_visible()
        try:
            cancel.click(timeout=1000)
        except PlaywrightTimeout:
            continue  # it has ended: the button is gone
        ended = row.get_by_text(re.compile("^(done|failed|downloaded)"))
        expect(ended).to_be_visible()
        if "cancelled" in row.inner_text():
            return
    raise AssertionError("no task was cancelled")
