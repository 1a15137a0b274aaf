"""Recognising what a failed download leaves in place of a file."""

from __future__ import annotations

_WEB_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<error", b"<head", b"<!--")


META_AGAIN = "run download.sh again, it resumes"
HUB_AGAIN = "download it again (`hf download` goes on where it stopped)"


def describe_foreign(name: str, head: bytes, *, hub: bool = False) -> str | None:
    """Say what a file is, if it is a web page or a Git LFS pointer; else return None.

    Parameters
    ----------
    name : str
        The file's name, for the message.
    head : bytes
        Its first bytes, up to 512.
    hub : bool
        Whether it comes from Hugging Face's hub, not from Meta.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_WEB_PAGE_STARTS):
        if hub:
            return f"{name} is a web page: the download failed; log in (`hf auth login`) and repeat"
        return (
            f"{name} is a web page: the signed URL from Meta expired (24 hours); request a new one"
        )
    if text.startswith(b"version https://git-lfs"):
        return f"{name} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    return None
