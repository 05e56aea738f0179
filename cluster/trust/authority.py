"""The network's certificate authority: makes itself, and signs for the processes of servers.

P-256 throughout (FIPS 186-5), X.509 v3 (RFC 5280). A private key is made where it is used, and only a request to sign leaves
that machine.
"""

import base64
import datetime
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.errors import Refused
from cluster.trust.identity import BACKDATED_S, Identity, Role, authority_name, authority_number, parse_identity

AUTHORITY_S = 10 * 366 * 86400.0  # a new one takes over long before: docs/security.md
CERTIFICATE_S = 365 * 86400.0
SERVING = frozenset({Role.MANAGER, Role.AGENT})  # whose processes others connect to
REQUEST_MAX_BYTES = 4096  # of a request to sign; one of P-256 has about 300


@dataclass(frozen=True)
class Authority:
    """A certificate authority with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, cluster: str, number: int = 1) -> "Authority":
        """A new one: the *number*th of this network."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, authority_name(cluster, number))])
        now = _now()
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(seconds=BACKDATED_S))
            .not_valid_after(now + datetime.timedelta(seconds=AUTHORITY_S))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, text: bytes) -> "Authority":
        """What `dump` has written; raises `Refused`."""
        try:
            key = load_pem_private_key(text, None)
            certificate = x509.load_pem_x509_certificate(text)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Refused(f"not a certificate authority: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise Refused("not a certificate authority: key and certificate do not belong together")
        return cls(certificate, key)

    def dump(self) -> bytes:
        """Its private key and its certificate, as PEM."""
        return dump_key(self.key) + self.pem

    @property
    def pem(self) -> bytes:
        """Its certificate, as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def number(self) -> int:
        """Which one of the network's it is."""
        return number_of(self.certificate)

    @property
    def pin(self) -> str:
        """What names its key in join tokens."""
        return pin_of(self.certificate)

    def sign(self, request: bytes, identity: Identity, valid_s: float = CERTIFICATE_S) -> bytes:
        """A certificate as PEM for the key in *request* (PKCS #10, DER), which names *identity* whatever the request says.

        Raises `Refused` for what is no request of P-256, or not signed by its own key.
        """
        key = _requested_key(request)
        now = _now()
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if identity.role in SERVING:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{identity.role} of {identity.server}"[:64])])
        end = min(now + datetime.timedelta(seconds=valid_s), self.certificate.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - datetime.timedelta(seconds=BACKDATED_S), self.certificate.not_valid_before_utc))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key of P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def dump_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def request_for(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request to sign a certificate for *key* (PKCS #10, DER). It names nobody: the authority decides whom it signs for."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def key_digest(request: bytes) -> bytes:
    """What is the same in two requests if and only if their keys are. Raises `Refused` as `Authority.sign`."""
    spki = _requested_key(request).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


def pin_of(certificate: x509.Certificate) -> str:
    """The SHA-256 digest of a certificate's public key, in base64 for URLs (as RFC 7469 hashes keys)."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.urlsafe_b64encode(hashlib.sha256(spki).digest()).rstrip(b"=").decode()


def number_of(authority: x509.Certificate) -> int:
    """Which one of the network's an authority is, as its name says; 0 if that says nothing."""
    return _number_in(authority.subject)


def signer_of(certificate: x509.Certificate) -> int:
    """The number of the authority that has signed a certificate, as that says."""
    return _number_in(certificate.issuer)


def _number_in(name: x509.Name) -> int:
    names = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return authority_number(str(names[0].value)) if len(names) == 1 else 0


def has_signed(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether the certificate is of this authority."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def load_certificates(text: bytes) -> list[x509.Certificate]:
    """The certificates in PEM text; raises `Refused` if there is none or one is damaged."""
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError as error:
        raise Refused(f"no certificates: {error}") from error


def own_certificate(text: bytes) -> x509.Certificate:
    """The first certificate in PEM text, which may have a key before it; raises `Refused`."""
    return load_certificates(text[max(0, text.find(b"-----BEGIN CERTIFICATE-----")) :])[0]


def certified(certificate: x509.Certificate) -> Identity:
    """Whom a certificate names; raises `Refused` if it names no process of a network."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return parse_identity(uri)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise Refused("the certificate names no process of a network") from error


def _requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    if len(request) > REQUEST_MAX_BYTES:
        raise Refused(f"a request to sign of {len(request)} bytes")
    try:
        found = x509.load_der_x509_csr(request)
        key = found.public_key()
        is_good = found.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise Refused(f"not a request to sign a certificate: {error}") from error
    if not is_good or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refused("a request to sign must be for a key of P-256, and signed by it")
    return key


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
