//! Certificates for a control plane: one authority, server and client certificates signed by it.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::{Error, Result};

/// A certificate authority that signs into one folder.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
}

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key, readable by its owner alone.
    pub key: PathBuf,
}

/// A private key and its public half, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// The private key, readable by its owner alone.
    pub private: PathBuf,
    /// The public key.
    pub public: PathBuf,
}

/// Whom a certificate is for.
#[derive(Debug, Default)]
pub struct Subject<'a> {
    /// The common name: the user, to Kubernetes.
    pub name: &'a str,
    /// The organization: the group, to Kubernetes.
    pub group: Option<&'a str>,
    /// DNS names a server answers to.
    pub dns: Vec<String>,
    /// Addresses a server answers on.
    pub addresses: Vec<IpAddr>,
}

impl Authority {
    /// Makes a new authority; `ca.crt` and `ca.key` go to `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io(format!("create {}", dir.display())))?;
        let name = "titan-cells local CA";
        let failed = |source| Error::Certificate {
            subject: name.to_owned(),
            source,
        };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        write(&dir.join("ca.crt"), &certificate.pem(), 0o644)?;
        write(&dir.join("ca.key"), &key.serialize_pem(), 0o600)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            dir: dir.to_owned(),
        })
    }

    /// The authority's certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Signs a certificate for both serving and calling; `<file>.crt` and `<file>.key` go to the folder.
    pub fn sign(&self, file: &str, subject: &Subject<'_>) -> Result<Pair> {
        let failed = |source| Error::Certificate {
            subject: subject.name.to_owned(),
            source,
        };
        let mut params = CertificateParams::new(subject.dns.clone()).map_err(failed)?;
        params
            .subject_alt_names
            .extend(subject.addresses.iter().copied().map(SanType::IpAddress));
        params
            .distinguished_name
            .push(DnType::CommonName, subject.name);
        if let Some(group) = subject.group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let pair = Pair {
            certificate: self.dir.join(format!("{file}.crt")),
            key: self.dir.join(format!("{file}.key")),
        };
        write(&pair.certificate, &certificate.pem(), 0o644)?;
        write(&pair.key, &key.serialize_pem(), 0o600)?;
        Ok(pair)
    }

    /// Signs a client certificate and writes a kubeconfig that uses it to `<file>.kubeconfig`.
    pub fn kubeconfig(
        &self,
        file: &str,
        user: &str,
        group: Option<&str>,
        server: &str,
    ) -> Result<PathBuf> {
        let pair = self.sign(
            file,
            &Subject {
                name: user,
                group,
                ..Subject::default()
            },
        )?;
        let path = self.dir.join(format!("{file}.kubeconfig"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: titan\n\
             clusters:\n- name: titan\n  cluster: {{server: \"{server}\", certificate-authority: {ca}}}\n\
             users:\n- name: {file}\n  user: {{client-certificate: {certificate}, client-key: {key}}}\n\
             contexts:\n- name: titan\n  context: {{cluster: titan, user: {file}}}\n",
            ca = self.certificate().display(),
            certificate = pair.certificate.display(),
            key = pair.key.display(),
        );
        write(&path, &text, 0o600)?;
        Ok(path)
    }

    /// A key pair without a certificate, for service account tokens: `<file>.key` and `<file>.pub`.
    pub fn keys(&self, file: &str) -> Result<Keys> {
        let key = KeyPair::generate().map_err(|source| Error::Certificate {
            subject: file.to_owned(),
            source,
        })?;
        let keys = Keys {
            private: self.dir.join(format!("{file}.key")),
            public: self.dir.join(format!("{file}.pub")),
        };
        write(&keys.private, &key.serialize_pem(), 0o600)?;
        write(&keys.public, &key.public_key_pem(), 0o644)?;
        Ok(keys)
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    use std::io::Write;
    let failed = || Error::io(format!("write {}", path.display()));
    let mut file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .map_err(failed())?;
    file.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(failed())?;
    file.write_all(text.as_bytes()).map_err(failed())
}
