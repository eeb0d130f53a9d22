"""Certificates of one cluster: an authority, what it issues, and kubeconfigs. Everything lives in one folder and is thrown away with it."""

import base64
import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = datetime.timedelta(days=365)
_BACKDATED = datetime.timedelta(hours=1)
"""Clocks of machines that are restored from a snapshot may be behind."""


@dataclass(frozen=True)
class Certificate:
    """A PEM certificate and its private key on disk."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority in `folder`; created when the folder has none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate = folder / "ca.crt"
        key_file = folder / "ca.key"
        if self.certificate.exists():
            key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise TypeError(f"{key_file} is not an elliptic curve key; delete {folder}")
            self._key = key
        else:
            self._key = _new_key(key_file)
            # Last, so that an authority is complete exactly when its certificate exists.
            self.certificate.write_bytes(self._self_signed())

    def issue(self, name: str, *, user: str, groups: tuple[str, ...] = (), hosts: tuple[str, ...] = ()) -> Certificate:
        """A certificate for client and server use: `user` is the common name, `groups` the organisations, `hosts` names and addresses."""
        issued = Certificate(certificate=self.folder / f"{name}.crt", key=self.folder / f"{name}.key")
        if issued.certificate.exists():
            return issued
        key = _new_key(issued.key)
        subject = _name(user, groups)
        builder = _builder(subject, self._issuer(), key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        issued.certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return issued

    def signing_key(self, name: str) -> Path:
        """A bare private key, such as the one that signs service account tokens."""
        file = self.folder / f"{name}.key"
        if not file.exists():
            _new_key(file)
        return file

    def kubeconfig(self, file: Path, *, url: str, identity: Certificate, context: str = "millrace") -> Path:
        """Writes a kubeconfig with everything inside, so that it can be copied."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": context, "cluster": {"server": url, "certificate-authority-data": _base64(self.certificate)}}],
            "users": [
                {
                    "name": context,
                    "user": {"client-certificate-data": _base64(identity.certificate), "client-key-data": _base64(identity.key)},
                }
            ],
            "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
            "current-context": context,
        }
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        return file

    def _issuer(self) -> x509.Name:
        return _name("millrace", ())

    def _self_signed(self) -> bytes:
        builder = _builder(self._issuer(), self._issuer(), self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _new_key(file: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    file.touch(mode=0o600)
    # Kubernetes reads the public half of a service account key only from this older format.
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    file.write_bytes(pem)
    return key


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _BACKDATED,
        not_valid_after=now + LIFETIME,
    )


def _name(user: str, groups: tuple[str, ...]) -> x509.Name:
    organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
