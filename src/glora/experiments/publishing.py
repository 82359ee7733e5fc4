r"""Texts for records: without this machine's folders, users and secrets.

Records are meant to be published. A local model or data file is named by the last part of its path, with a digest that tells
paths apart; in messages, absolute paths (POSIX, Windows, UNC, `file://`) keep their last part, and tokens become `***`.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
import tempfile
from pathlib import Path

import glora

_WORD = r"""(?:[^/\\\s"'`:;|<>*?]|(?<=\w)'(?=\w)|[ ](?![ /\\]))"""
_PART = rf"(?![ ]){_WORD}+"
"""A part of a path; it may have spaces inside, and an apostrophe between letters."""
_SECRET = (
    r"(?:[\w-]*(?:api|access|secret|private|signing|account)[_-]?key|"
    r"[\w-]*(?:password|passwd|passphrase|pwd|secret|credentials?|connection[_-]?string)|"
    r"(?:[\w-]*(?:access|auth|refresh|hf|id|api|hub|session|security|bot)[_-])?token|"
    r"(?:proxy-)?authorization|x-[\w-]*(?:key|token|auth)[\w-]*)"
)
_RULES = tuple(
    (re.compile(pattern, flags), replacement)
    for pattern, replacement, flags in (
        # User and password; the last @ ends them.
        (r"(?<=://)(?:[^\s/?#\"'<>]+@|[^\s/\"'<>]*:[^\s\"'<>]*@)", "***@", 0),
        (r"(?<=://)([^\s?\"'<>]+\?)[^\s\"'<>)]+", r"\1***", 0),
        (
            rf"(?<![\w-])((?:--?)?{_SECRET}[\"']?\s*[:=]\s*)"
            rf"(?:(?P<quote>[\"'])(?:\\.|(?!(?P=quote))[^\n])+|(?:(?:bearer|basic|token)\s+)?[^\s\"',;&)}}\]]+)",
            r"\1\g<quote>***",
            re.I,
        ),
        (rf"(?<![\w-])(--?{_SECRET}\s+)[^\s\"']+", r"\1***", re.I),
        (r"\b((?:set-)?cookie[\"']?\s*:\s*[\"']?)[^\n\"']+", r"\1***", re.I),
        (r"\b(bearer\s+)[^\s\"',;)]+", r"\1***", re.I),
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", "***", re.S),
        (
            r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|npm_|pypi-|nvapi-|gsk_|wandb_v\d_|xox[abp]-|AKIA|ASIA|AIza|eyJ)[\w.-]{12,}",
            "***",
            0,
        ),
        # Folders of users, which are the last part of a path.
        (r"(?<=[\"'])(?:[A-Za-z]:)?[/\\]+(?:home|Users)[/\\]+[^/\\\"'\n]+[/\\]*(?=[\"'])", "~", 0),
        (rf"(?<!\w)[A-Za-z]:[/\\]+Users[/\\]+{_WORD}+?[/\\]*(?=$|[\"'`:;,)\s](?!{_WORD}*[/\\]))", "~", re.M),
        (rf"(?<![\w./\\~>…-])/(?:home|Users)/{_WORD}+?/?(?=$|[\"'`:;,)\s](?!{_WORD}*[/\\]))", "~", re.M),
        (r"(?<![\w./\\])~[\w.-]+(?=/)", "~", 0),
        (rf"\bfile:/+(?:[A-Za-z]:/+)?(?:home|Users)/+{_WORD}+?/?(?=$|[\"'`:;,)\s](?!{_WORD}*[/\\]))", "~", re.M | re.I),
        # Folders of absolute paths.
        (rf"\bfile:/*(?:[A-Za-z]:)?(?:/*{_PART}[/\\]+)+", "…/", re.I),
        (rf"(?<=:///)/*(?:{_PART}/+)+(?={_WORD})", "…/", 0),
        (rf"(?<!\w)[A-Za-z]:[/\\]+(?:{_PART}[/\\]+)*(?={_WORD})", "…/", 0),
        (rf"(?<![\w\\])\\\\+(?:{_PART}[/\\]+)+(?={_WORD})", "…/", 0),
        (rf"(?<![\w./\\~>…:-])//(?:{_PART}/+)+(?={_WORD})", "…/", 0),
        (rf"(?<![\w./\\~>…-])/(?:{_PART}/+)+(?={_WORD})", "…/", 0),
    )
)


def published_name(name: str) -> str:
    """Return a model or task as records name it: `/data/me/train.csv:text` -> `train.csv:text~1f0e2d3c`.

    Names of the registries, hub ids and what is relative to the working folder by one step (`reviews/train.csv`) are kept.
    """
    if not is_local(name):
        return _as_utf8(name)
    path = name.replace("\\", "/").rstrip("/")
    last = re.sub(r"[^,]*/", "", path).lstrip("~") or "folder"
    digest = hashlib.sha256(os.fsencode(os.path.abspath(os.path.expanduser(name)))).hexdigest()
    return _as_utf8(f"{last}~{digest[:8]}")


def without_digest(name: str) -> str:
    """Return the name of a record without the digest that tells paths apart."""
    return re.sub(r"~[0-9a-f]{8}$", "", name)


def is_local(name: str) -> bool:
    """Return whether a model or task is written as a path that may name folders of this machine."""
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1


def publishable(text: str) -> str:
    """Return a text without this machine's folders, without secrets, and without characters that UTF-8 cannot hold."""
    for folder, replacement in _machine_folders():
        # Only where a path begins and the name ends: /home/me is in neither /home/mel nor /x/home/me.
        folder_itself = rf"(?<![\w.\-/\\]){re.escape(folder)}(?=[/\\]|\.?(?:[^\w.\-]|$))"
        text = re.sub(folder_itself, lambda _, r=replacement: r, text)  # type: ignore[misc]
    for rule, replacement in _RULES:
        text = rule.sub(replacement, text)
    return _as_utf8(text)


def _as_utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _machine_folders() -> list[tuple[str, str]]:
    """Folders that say something about the machine, and what they are called instead; inner ones before outer ones."""
    paths = sysconfig.get_paths()
    named = [
        (paths["purelib"], "site-packages"),
        (paths["platlib"], "site-packages"),
        (paths["stdlib"], "python"),
        (str(Path(glora.__file__).resolve().parent), "glora"),
        (tempfile.gettempdir(), "<temporary>"),
        (str(Path.cwd()), "."),
        (str(Path.home()), "~"),
    ]
    return sorted({pair for pair in named if len(pair[0]) > 1}, key=lambda pair: -len(pair[0]))
