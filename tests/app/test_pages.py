"""Runs as pages."""

from starlette.testclient import TestClient


def test_the_list_names_every_run_and_escapes_what_they_say(client: TestClient) -> None:
    page = client.get("/", follow_redirects=True)
    assert page.status_code == 200
    assert 'href="/runs/aaaa000001"' in page.text
    assert 'href="/runs/bbbb000002"' in page.text
    assert "<script>alert" not in page.text
    assert "aaaa000001" not in client.get("/runs", params={"study": "other"}).text


def test_a_run_shows_its_report_in_a_frame_without_rights(client: TestClient) -> None:
    page = client.get("/runs/aaaa").text
    assert 'sandbox="allow-scripts allow-downloads"' in page
    report = client.get("/runs/aaaa000001/report")
    assert report.status_code == 200
    assert "effect" in report.text
    assert report.headers["content-security-policy"].startswith("sandbox allow-scripts")
    assert "allow-same-origin" not in report.headers["content-security-policy"] + page


def test_files_of_a_run_are_downloads(client: TestClient) -> None:
    file = client.get("/runs/aaaa000001/files/data.json")
    assert file.json() == {"a": 1}
    assert file.headers["content-disposition"].startswith("attachment")


def test_what_is_not_there_is_said_so(client: TestClient) -> None:
    for path in ("/runs/zzz", "/runs/aaaa000001/files/x.json", "/static/..%2fapp.css", "/static/create.py", "/nothing"):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert answer.json()["error"]["message"]
    page = client.get("/runs/zzz", headers={"accept": "text/html"})
    assert page.status_code == 404
    assert "<h1>Not here</h1>" in page.text


def test_a_run_with_nothing_to_show_says_so(client: TestClient) -> None:
    assert client.get("/runs/bbbb000002").status_code == 200
    assert client.get("/runs/bbbb000002/report").status_code == 400
