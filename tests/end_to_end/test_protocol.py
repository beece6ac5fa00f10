"""The real huggingface_hub against the replica: what it lists and downloads, and how it takes faults."""

from __future__ import annotations

import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.client import Client, ClientError
from tests.hub.server import Hub
from tests.hub.store import ATTRIBUTES, git_hash

LARGE, SMALL = bytes(range(256)) * 400, b'{"tiny": true}\n'
MODEL, DATASET = "owner/model", "owner/set"
DOWNLOAD = (
    "from huggingface_hub import hf_hub_download\nanswer = hf_hub_download(repo, path, cache_dir=cache)"
)
SNAPSHOT = (
    "from huggingface_hub import snapshot_download\n"
    "answer = snapshot_download(repo, revision=revision, cache_dir=cache, allow_patterns=patterns)"
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    files = {"config.json": SMALL, "model.safetensors": LARGE, "sub/folder/note.txt": b"deep\n"}
    for path, data in files.items():
        file = folder / "models" / MODEL / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    many = folder / "datasets" / DATASET / "data"
    many.mkdir(parents=True)
    for i in range(120):
        (many / f"{i:03}.txt").write_text(str(i))
    with Hub(folder) as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub.env(tmp_path_factory.mktemp("home"), timeout=3)) as client:
        yield client


@pytest.fixture(autouse=True)
def _clean(hub: Hub) -> None:
    hub.forget()


def download(client: Client, cache: Path, path: str = "model.safetensors", repo: str = MODEL) -> bytes:
    return Path(client.run(DOWNLOAD, repo=repo, path=path, cache=str(cache))).read_bytes()


def test_a_repository_states_its_commit_files_and_hashes(hub: Hub, client: Client) -> None:
    answer = client.run(
        "from huggingface_hub import HfApi\ninfo = HfApi().model_info(repo, files_metadata=True)\n"
        "files = {s.rfilename: [s.size, s.blob_id, s.lfs and s.lfs.sha256] for s in info.siblings}\n"
        "answer = [info.sha, files]",
        repo=MODEL,
    )
    sha, files = answer
    assert sha == hub.head(f"models/{MODEL}")
    assert files["config.json"] == [len(SMALL), git_hash(SMALL), None]
    assert files["model.safetensors"][::2] == [len(LARGE), hashlib.sha256(LARGE).hexdigest()]
    assert files[".gitattributes"][0] == len(ATTRIBUTES)


def test_trees_are_listed_whole_over_several_pages(hub: Hub, client: Client) -> None:
    code = (
        "from huggingface_hub import list_repo_tree\n"
        "answer = [entry.path for entry in "
        "list_repo_tree(repo, path, repo_type=kind, recursive=deep, expand=expand)]"
    )
    files = client.run(code, repo=DATASET, path=None, kind="dataset", deep=True, expand=True)
    assert files == [".gitattributes", "data", *(f"data/{i:03}.txt" for i in range(120))]
    assert len([one for one in hub.served if "/tree/" in one.path]) == 3
    top = client.run(code, repo=MODEL, path=None, kind="model", deep=False, expand=False)
    assert top == [".gitattributes", "config.json", "model.safetensors", "sub"]
    assert client.run(code, repo=MODEL, path="sub", kind="model", deep=False, expand=False) == ["sub/folder"]


def test_paths_are_looked_up_and_unknown_ones_left_out(client: Client) -> None:
    code = "from huggingface_hub import HfApi\nanswer = [p.path for p in HfApi().get_paths_info(repo, paths)]"
    paths = ["config.json", "absent.json", "sub/folder"]
    assert client.run(code, repo=MODEL, paths=paths) == ["config.json", "sub/folder"]


def test_downloads_are_the_files_and_are_cached_by_their_hashes(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    assert download(client, tmp_path) == LARGE
    assert download(client, tmp_path, "config.json") == SMALL
    blobs = {path.name for path in tmp_path.glob("models--owner--model/blobs/*")}
    assert blobs == {hashlib.sha256(LARGE).hexdigest(), git_hash(SMALL)}
    assert hub.downloaded() == {f"{MODEL}/model.safetensors", f"{MODEL}/config.json"}
    hub.forget()
    assert download(client, tmp_path) == LARGE
    assert not hub.downloaded()


def test_a_snapshot_is_of_its_revision_and_of_the_wanted_files(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    old = hub.head(f"models/{MODEL}")
    new = hub.commit(f"models/{MODEL}", {"config.json": b"{}"})
    for revision, content in ((old, SMALL), (new, b"{}"), ("main", b"{}")):
        values = {"repo": MODEL, "revision": revision, "cache": str(tmp_path), "patterns": ["*.json"]}
        folder = Path(client.run(SNAPSHOT, **values))
        assert folder.name == (old if revision == old else new)
        assert (folder / "config.json").read_bytes() == content
    assert hub.downloaded() == {f"{MODEL}/config.json"}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("hf_hub_download('owner/absent', 'config.json', cache_dir=cache)", "RepositoryNotFoundError"),
        ("hf_hub_download('owner/model', 'absent.json', cache_dir=cache)", "EntryNotFoundError"),
        (
            "hf_hub_download('owner/model', 'config.json', revision='v9', cache_dir=cache)",
            "RevisionNotFoundError",
        ),
        ("HfApi().dataset_info('owner/model')", "RepositoryNotFoundError"),
        ("HfApi().model_info('owner/model', revision='0' * 40)", "RevisionNotFoundError"),
        ("list(HfApi().list_repo_tree('owner/model', 'absent'))", "EntryNotFoundError"),
    ],
)
def test_what_is_not_there_is_told_apart(client: Client, tmp_path: Path, code: str, error: str) -> None:
    with pytest.raises(ClientError, match=error):
        client.run(f"from huggingface_hub import HfApi, hf_hub_download\n{code}", cache=str(tmp_path))


@pytest.mark.parametrize(
    ("wanted", "status", "sent"),
    [("bytes=0-0", 206, LARGE[:1]), ("bytes=100-199", 206, LARGE[100:200]), ("bytes=100-", 206, LARGE[100:])],
)
def test_a_range_of_a_file_is_sent(hub: Hub, wanted: str, status: int, sent: bytes) -> None:
    url = f"{hub.endpoint}/{MODEL}/resolve/main/model.safetensors"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": wanted})) as answer:
        assert (answer.status, answer.read()) == (status, sent)
        assert answer.headers["Content-Range"].endswith(f"/{len(LARGE)}")


def test_a_range_beyond_the_end_is_refused(hub: Hub) -> None:
    url = f"{hub.endpoint}/{MODEL}/resolve/main/model.safetensors"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, headers={"Range": f"bytes={len(LARGE)}-"}))
    with caught.value as error:
        assert error.code == 416


def test_a_cut_body_is_resumed_where_it_ended(hub: Hub, client: Client, tmp_path: Path) -> None:
    """The client keeps whole chunks of 10 MB; smaller ones let a small file be resumed."""
    hub.fail("*/model.safetensors", "cut", times=1)
    chunks = "from huggingface_hub import constants\nconstants.DOWNLOAD_CHUNK_SIZE = "
    client.run(f"{chunks}1024")
    assert download(client, tmp_path) == LARGE
    client.run(f"{chunks}10 * 1024 * 1024")
    bodies = [one for one in hub.served if one.method == "GET"]
    assert [one.range for one in bodies] == [None, f"bytes={len(LARGE) // 2}-"]
    assert [one.fault for one in bodies] == ["cut", None]


def test_too_many_requests_are_retried_when_told_to(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.fail("*/model.safetensors", "429", times=1, seconds=1, method="GET")
    start = time.monotonic()
    assert download(client, tmp_path) == LARGE
    assert time.monotonic() - start > 1
    assert [one.status for one in hub.served] == [302, 429, 200]


def test_a_server_error_stops_a_download(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.fail("*/model.safetensors", "500", times=1, method="GET")
    with pytest.raises(ClientError, match="HfHubHTTPError: Server error '500"):
        download(client, tmp_path)
    assert download(client, tmp_path) == LARGE


def test_a_stalled_answer_is_a_timeout(hub: Hub, client: Client) -> None:
    hub.fail("/api/models/*", "stall", times=1)
    with pytest.raises(ClientError, match="ReadTimeout"):
        client.run(f"from huggingface_hub import HfApi\nHfApi().model_info({MODEL!r}, timeout=0.5)")


def test_a_download_that_stalls_is_asked_for_again(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.fail("*/model.safetensors", "stall", times=1, method="HEAD")
    assert download(client, tmp_path) == LARGE
    assert [(one.method, one.fault) for one in hub.served] == [
        ("HEAD", "stall"),
        ("HEAD", None),
        ("GET", None),
    ]


def test_a_corrupt_body_is_not_noticed_by_the_client(hub: Hub, client: Client, tmp_path: Path) -> None:
    """Whoever needs the right bytes has to hash them: the cached file's name is the hash it should have."""
    hub.fail("*/model.safetensors", "corrupt", times=1)
    wrong = download(client, tmp_path)
    assert len(wrong) == len(LARGE)
    assert sum(a != b for a, b in zip(wrong, LARGE, strict=True)) == 1
    assert (tmp_path / "models--owner--model" / "blobs" / hashlib.sha256(LARGE).hexdigest()).is_file()


def test_a_wrong_hash_header_names_the_cached_file(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.fail("*/model.safetensors", "wrong-hash")
    assert download(client, tmp_path) == LARGE
    (blob,) = tmp_path.glob("models--owner--model/blobs/*")
    assert len(blob.name) == 64
    assert blob.name != hashlib.sha256(LARGE).hexdigest()


def test_a_file_can_change_under_its_commit(hub: Hub, client: Client, tmp_path: Path) -> None:
    repo = f"models/{MODEL}"
    sha, before = hub.head(repo), hub.read(repo, "sub/folder/note.txt")
    assert download(client, tmp_path / "old", "sub/folder/note.txt") == before
    hub.replace(repo, "sub/folder/note.txt", b"another\n")
    assert download(client, tmp_path / "new", "sub/folder/note.txt") == b"another\n"
    assert hub.head(repo) == sha
    assert (tmp_path / "new" / "models--owner--model" / "snapshots" / sha).is_dir()


def test_faults_concern_only_the_paths_that_match(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.fail("/api/datasets/*", "500")
    assert download(client, tmp_path) == LARGE
    with pytest.raises(ClientError, match="Server error '500"):
        client.run("from huggingface_hub import HfApi\nHfApi().dataset_info('owner/set')")
    with pytest.raises(ValueError, match="kinds are 500, 429"):
        hub.fail("*", "404")  # type: ignore[arg-type]
