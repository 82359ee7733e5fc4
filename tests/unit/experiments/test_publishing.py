"""Records name no folder, no user and no secret."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from glora.experiments.number_format import short_name
from glora.experiments.publishing import publishable, published_name


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"no file {Path.home()}/data/train.tsv", "no file ~/data/train.tsv"),
        (f"no file '{Path.cwd()}/train.tsv'", "no file './train.tsv'"),
        (f"cannot write to {tempfile.gettempdir()}.", "cannot write to <temporary>."),
        ("no file /srv/secret-project/rte/train.tsv: line 3", "no file …/train.tsv: line 3"),
        ("error:/home/mel/x/y.csv", "error:…/y.csv"),
        ("--output=/home/mel/out", "--output=…/out"),
        ("cp /srv/a/x.csv and /srv/b/y.csv", "cp …/x.csv and …/y.csv"),
        ("'/home/mel smith/my project/a file.csv'", "'…/a file.csv'"),
        ("/home/o'brien/данные/x.csv", "…/x.csv"),
        ("no folder /home/mel: denied", "no folder ~: denied"),
        ("no folder '/Users/mel smith'", "no folder '~'"),
        ("~mel/x/y", "~/x/y"),
        (r"no file C:\Users\mel smith\My Data\x.csv", "no file …/x.csv"),
        (r"no file 'C:\\Users\\mel\\x.csv'", "no file '…/x.csv'"),
        ("no folder C:/Users/mel", "no folder ~"),
        (r"\\server\share\mel\x.csv", "…/x.csv"),
        (r"'\\\\server\\share\\x.csv'", "'…/x.csv'"),
        ("file:///home/mel/x.csv", "…/x.csv"),
        ("file:///C:/Users/mel/x.csv", "…/x.csv"),
        ("file://server/mel/x.csv", "…/x.csv"),
        ("sqlite:////home/mel/x.db", "sqlite:///…/x.db"),
        ("https://mel:p@ss@host/a/b", "https://***@host/a/b"),
        ("https://hub/a/b?token=abc&x=1 (404)", "https://hub/a/b?*** (404)"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': '***'}"),
        ("Authorization: Basic bWVsOnB3", "Authorization: ***"),
        ("X-Api-Key: abc; Cookie: a=b; c=d", "X-Api-Key: ***; Cookie: ***"),
        ("HF_TOKEN=abc WANDB_API_KEY='abc' password: abc", "HF_TOKEN=*** WANDB_API_KEY='***' password: ***"),
        ("invalid hf_abcdefghijklmnop", "invalid ***"),
        ("invalid glpat-abcdefghijklmnop, wandb_v1_abcdefghijklmnop", "invalid ***, ***"),
        ("mysql+pymysql://mel:p/ss@host/db", "mysql+pymysql://***@host/db"),
        ('{"password": "a b, c", "x": 1}', '{"password": "***", "x": 1}'),
        (r"{'passphrase': 'it\'s, secret'}", "{'passphrase': '***'}"),
        ("run --token=abc --api-key abc --x y", "run --token=*** --api-key *** --x y"),
        ("AccountKey=abc==; y", "AccountKey=***; y"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY----- y", "*** y"),
        ("//server/share/mel/x.csv", "…/x.csv"),
        ("no folder file:///home/mel", "no folder ~"),
        *((text, text) for text in ("https://example.org/a/b and and/or", "5 / 6 / 7", "pad_token=None, tokens: 5")),
        ("file \udcff", "file \\udcff"),
    ],
)
def test_folders_users_and_secrets_are_left_out(message: str, shown: str) -> None:
    assert publishable(message) == shown
    assert publishable(shown) == shown


@pytest.mark.parametrize(
    ("path", "shown"), [("/home/me", "~"), ("/home/me/a", "~/a"), ("/home/mel/a", "…/a"), ("/srv/home/me/a", "…/a")]
)
def test_a_folder_is_recognised_whole(monkeypatch: pytest.MonkeyPatch, path: str, shown: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert publishable(path) == shown


@pytest.mark.parametrize("text", ["(/" * 20_000, "/a " * 20_000, "a:a/" * 20_000, "a_" * 50_000, "/home/a, " * 5_000])
def test_a_long_message_takes_no_time(text: str) -> None:
    start = time.process_time()
    publishable(text)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/data/mel/train.csv:text:label", "train.csv:text:label"),
        ("/data/mel/a.csv,/data/mel/b.csv", "a.csv,b.csv"),
        (r"C:\Users\mel\tiny", "tiny"),
        ("~/models/final/", "final"),
        ("../final", "final"),
        ("file:///home/mel/tiny", "tiny"),
    ],
)
def test_a_path_is_named_by_its_last_part_and_a_digest(name: str, shown: str) -> None:
    published = published_name(name)
    assert published.startswith(f"{shown}~")
    assert len(published) == len(shown) + 9
    assert published_name(published) == published
    assert short_name(published) == short_name(name) or "," in name
    assert published_name(f"/elsewhere{name}") != published


def test_one_folder_has_one_name_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"{tmp_path}/tiny", f"{tmp_path}/tiny/", "./tiny", f"{tmp_path}{os.sep}x/../tiny"]
    assert len(set(map(published_name, names))) == 1


@pytest.mark.parametrize("name", ["rte", "microsoft/deberta-v3-base", "reviews/train.csv:text", "数据.csv"])
def test_other_names_are_kept(name: str) -> None:
    assert published_name(name) == name
