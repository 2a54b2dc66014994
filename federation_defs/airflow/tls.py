"""What an https host must prove, and what we can."""

from __future__ import annotations

import os
import ssl

import certifi

from federation_defs.declaration import TlsDeclaration


class TlsFileError(Exception):
    """A file that is declared is not there, or holds something else; the message names it."""


def build_tls_context(tls: TlsDeclaration) -> ssl.SSLContext:
    """One context for all connections, complete: loading into it later is not safe with threads.

    Trusted are the system's authorities, where a company puts its own; those that requests brings,
    for systems that have none; and what the environment and the declaration name.

    Raises:
        TlsFileError: A file is missing, or of no use.
    """
    context = ssl.create_default_context()
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(certifi.where())
        for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # as requests has it
            if path := os.environ.get(variable):
                _load_authorities(context, path, variable)
                break
        if tls.ca_bundle:
            _load_authorities(context, tls.ca_bundle, "tls.ca_bundle")
    if tls.client_cert:
        _load_own_certificate(context, tls.client_cert, tls.client_key)
    return context


def _load_authorities(context: ssl.SSLContext, path: str, source: str) -> None:
    try:
        if os.path.isdir(path):
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(path)
    except OSError as error:  # ssl.SSLError is one
        raise TlsFileError(f"{source} {path}: {_tell(error)}") from error


def _load_own_certificate(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    def refuse_to_ask() -> str:
        # Else OpenSSL asks on the terminal, where nobody sits.
        raise TlsFileError(f"the key in {key or cert} wants a password; give one that does not")

    try:
        context.load_cert_chain(cert, key, password=refuse_to_ask)
    except OSError as error:
        files = f"tls.client_cert {cert}" + (f" and tls.client_key {key}" if key else "")
        raise TlsFileError(f"{files}: {_tell(error)}") from error


def _tell(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "they hold no certificate and key of each other, in PEM"
    return error.strerror or type(error).__name__
