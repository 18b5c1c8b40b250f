"""`recipes/report.py` as a command."""

from image_recipes import the_error
from recipe_process import recipe_server
from report_records import a_probe, a_run


def report(folder, *words):
    return recipe_server().run(folder, *words, script="recipes/report.py")


def test_each_folder_has_its_page_and_two_have_one_together(tmp_path):
    first, second = a_probe(a_run(tmp_path / "a")), a_run(tmp_path / "b")
    done = report(tmp_path / "log", first, second, "--output_file", tmp_path / "both.html")
    assert done.poll() == 0, done.stderr
    pages = [first / "report.html", second / "report.html", tmp_path / "both.html"]
    assert done.stdout.split() == list(map(str, pages)) and all(page.is_file() for page in pages)
    alone = report(tmp_path / "log", "--folders", second)
    assert alone.poll() == 0 and alone.stdout.split() == [str(second / "report.html")]


def test_what_is_no_result_is_named(tmp_path):
    assert "There is no folder" in the_error(report(tmp_path / "log", tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "holds nothing to report on" in the_error(report(tmp_path / "log", tmp_path / "empty"))
