use std::{fmt::Display, path::PathBuf, time::Duration};

use rustls::{
    Error, InconsistentKeys, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

use super::{TlsError, provider};

/// A file, and the flag that names it.
#[derive(Debug, Clone)]
pub struct PemFile {
    /// The flag, with its dashes.
    pub flag: &'static str,
    /// Where the file is.
    pub path: PathBuf,
}

impl PemFile {
    /// At least one certificate.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let bytes = self.read()?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        match certificates {
            Ok(certificates) if certificates.is_empty() => Err(self.wrong("holds no certificate in PEM")),
            Ok(certificates) => Ok(certificates),
            Err(_) => Err(self.wrong("is not well-formed PEM")),
        }
    }

    /// Trusts its certificates, all of them.
    pub(super) fn add_to(&self, roots: &mut RootCertStore) -> Result<(), TlsError> {
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| self.wrong(error))?;
        }
        Ok(())
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        // The library's own words quote the file.
        PrivateKeyDer::from_pem_slice(&self.read()?)
            .map_err(|_| self.wrong("holds no private key in PEM that is not encrypted"))
    }

    fn read(&self) -> Result<Vec<u8>, TlsError> {
        std::fs::read(&self.path).map_err(|error| self.wrong(error))
    }

    pub(super) fn wrong(&self, why: impl Display) -> TlsError {
        TlsError(format!("{}: {}: {why}", self.flag, self.path.display()))
    }
}

/// A certificate, with those that lead to its root, and its key.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// The certificate itself comes first.
    pub certificate: PemFile,
    /// PKCS#1, PKCS#8 or SEC1.
    pub key: PemFile,
}

impl KeyPair {
    pub(super) fn files(&self) -> impl Iterator<Item = &PemFile> {
        [&self.certificate, &self.key].into_iter()
    }

    /// The two, which fit together, and when the certificate ends.
    pub(super) fn load(&self) -> Result<(CertifiedKey, UnixTime), TlsError> {
        let chain = self.certificate.certificates()?;
        let not_after = chain.first().and_then(|leaf| not_after(leaf));
        let not_after = not_after.ok_or_else(|| self.certificate.wrong("the first certificate is not one of X.509"))?;
        let pair = CertifiedKey::from_der(chain, self.key.key()?, &provider()).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => self
                .key
                .wrong(format_args!("the key does not fit the certificate in {}", self.certificate.path.display())),
            Error::InvalidCertificate(why) => self.certificate.wrong(format_args!("not a usable certificate: {why:?}")),
            _ => self.key.wrong("not a usable private key"),
        })?;
        Ok((pair, not_after))
    }
}

fn not_after(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    // Before 1970 is as bad as 1970.
    let seconds = certificate.validity().not_after.timestamp().max(0);
    Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds.unsigned_abs())))
}
