//! Certificates for programs that speak TLS with themselves, and rustls set up with them.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name that our server's certificate is for.
pub const SERVER: &str = "localhost";

/// The name that our client's certificate is for.
pub const CLIENT: &str = "client";

/// Vouches for certificates, for as long as this program runs: its key is written nowhere.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and the key that belongs to it.
pub struct Identity {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    /// A new one of this name, which nobody trusts yet.
    ///
    /// # Errors
    ///
    /// When `name` cannot stand in a certificate.
    pub fn new(name: &str) -> Result<Authority, rcgen::Error> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Authority { issuer: CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)? })
    }

    /// A new key and a certificate of this authority, for `name`.
    ///
    /// # Errors
    ///
    /// When `name` cannot stand in a certificate.
    pub fn issue(&self, name: &str) -> Result<Identity, rcgen::Error> {
        let mut parameters = CertificateParams::new(vec![name.to_owned()])?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        Ok(Identity { certificate: parameters.signed_by(&key, &self.issuer)?, key })
    }

    /// What to trust in order to trust this authority and no other.
    ///
    /// # Errors
    ///
    /// None is expected: its certificate is well formed.
    pub fn roots(&self) -> Result<Arc<RootCertStore>, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        Ok(Arc::new(roots))
    }

    /// Writes what other programs need to speak with ours: `authority.pem`, whom to trust, and `client.pem`, a client's
    /// certificate and key.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn write(&self, directory: &Path) -> Result<(), Box<dyn Error>> {
        let client = self.issue(CLIENT)?;
        fs::create_dir_all(directory)?;
        fs::write(directory.join("authority.pem"), self.issuer.pem())?;
        fs::write(directory.join("client.pem"), client.certificate.pem() + &client.key.serialize_pem())?;
        Ok(())
    }
}

impl Identity {
    /// The chain of certificates, which is this one.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.der().clone()]
    }

    /// The key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }
}

/// For a server with this identity. With `clients`, a client must show a certificate that one of these vouches for.
///
/// # Errors
///
/// When a key does not fit its certificate.
pub fn server_config(identity: &Identity, clients: Option<Arc<RootCertStore>>) -> Result<ServerConfig, Box<dyn Error>> {
    let builder = ServerConfig::builder();
    let builder = match clients {
        Some(roots) => builder.with_client_cert_verifier(WebPkiClientVerifier::builder(roots).build()?),
        None => builder.with_no_client_auth(),
    };
    Ok(builder.with_single_cert(identity.chain(), identity.key())?)
}

/// For a client that trusts `servers`, and shows `identity` to those who ask.
///
/// # Errors
///
/// When a key does not fit its certificate.
pub fn client_config(servers: Arc<RootCertStore>, identity: Option<&Identity>) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder().with_root_certificates(servers);
    match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain(), identity.key()),
        None => Ok(builder.with_no_client_auth()),
    }
}

/// What rustls has to say of a failed read, write or handshake; `None` when it is the socket that failed.
pub fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
