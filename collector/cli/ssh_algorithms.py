"""Whether algorithms of SSH that somebody names are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from collector.core.ssh_settings import SettingsError


def check_algorithms(options: Mapping[str, str]) -> None:
    """Raises SettingsError for names of algorithms that no connection could be made with, and says which there are."""
    for name, value in options.items():
        if name not in _KNOWN:
            continue
        known = [algorithm.decode("ascii") for algorithm in _KNOWN[name]()]
        wrong = [part for part in value.lstrip("+-^").split(",") if not _matches(part, known)]
        if wrong:
            raise SettingsError(
                f"option {name}: there is no {', '.join(map(repr, wrong))}; there are {', '.join(known)}"
            )


def _matches(pattern: str, known: list[str]) -> bool:
    from asyncssh.pattern import WildcardPattern  # the same that asyncssh compares them with

    return bool(pattern) and any(WildcardPattern(pattern).matches(name) for name in known)


def _ciphers() -> list[bytes]:
    from asyncssh.encryption import get_encryption_algs

    return get_encryption_algs()


def _macs() -> list[bytes]:
    from asyncssh.mac import get_mac_algs

    return get_mac_algs()


def _kex() -> list[bytes]:
    from asyncssh.kex import get_kex_algs

    return get_kex_algs()


def _signatures() -> list[bytes]:
    from asyncssh.public_key import get_public_key_algs

    return get_public_key_algs()


def _host_keys() -> list[bytes]:
    from asyncssh.public_key import get_certificate_algs

    return [*_signatures(), *get_certificate_algs()]


_KNOWN: Mapping[str, Callable[[], list[bytes]]] = {
    "Ciphers": _ciphers,
    "HostKeyAlgorithms": _host_keys,
    "KexAlgorithms": _kex,
    "MACs": _macs,
    "PubkeyAcceptedAlgorithms": _signatures,
}
