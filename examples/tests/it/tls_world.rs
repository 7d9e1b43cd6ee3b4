//! Two ends of a TLS connection, and what they believe.

use std::io::{self, Read};
use std::ops::DerefMut;
use std::sync::Arc;

use dhaga::net::{TcpListener, TcpStream};
use dhaga_examples::tls::{self, Authority};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection, SideData,
    StreamOwned,
};

pub type ServerStream = StreamOwned<ServerConnection, TcpStream>;
pub type ClientStream = StreamOwned<ClientConnection, TcpStream>;

/// A server, a client who trusts it, and the authority that vouches for it.
pub struct World {
    pub authority: Authority,
    pub server: ServerConfig,
    pub client: ClientConfig,
}

impl World {
    pub fn new() -> World {
        let authority = Authority::new("the one of the tests").expect("an authority can be made");
        let identity = authority.issue(tls::SERVER).expect("it is a name");
        World {
            server: tls::server_config(&identity, None).expect("the key fits"),
            client: tls::client_config(roots(&authority), None).expect("no key is needed"),
            authority,
        }
    }

    /// Both ends of a connection, before the handshake.
    pub fn pair(&self) -> (ClientStream, ServerStream) {
        let (near, far) = pair();
        (self.client(near), self.server(far))
    }

    pub fn client(&self, socket: TcpStream) -> ClientStream {
        self.client_of(tls::SERVER, socket)
    }

    /// A client that expects `name` in the server's certificate.
    pub fn client_of(&self, name: &'static str, socket: TcpStream) -> ClientStream {
        let name = name.try_into().expect("it is a name");
        let connection = ClientConnection::new(Arc::new(self.client.clone()), name);
        StreamOwned::new(connection.expect("the configuration is whole"), socket)
    }

    pub fn server(&self, socket: TcpStream) -> ServerStream {
        let connection = ServerConnection::new(Arc::new(self.server.clone()));
        StreamOwned::new(connection.expect("the configuration is whole"), socket)
    }
}

pub fn roots(authority: &Authority) -> Arc<RootCertStore> {
    authority.roots().expect("its certificate is well formed")
}

/// Both ends of a TCP connection.
pub fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let near = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("somebody listens");
    (near, listener.accept().expect("somebody connects").0)
}

/// The handshake of either end.
pub fn shake<C, D>(tls: &mut StreamOwned<C, TcpStream>) -> io::Result<()>
where
    C: DerefMut<Target = ConnectionCommon<D>>,
    D: SideData,
{
    tls.conn.complete_io(&mut tls.sock)?;
    Ok(())
}

/// Why the handshake fails, or the first read after it: with TLS 1.3 a client learns only there what the server thinks of its
/// certificate.
pub fn refusal<C, D>(tls: &mut StreamOwned<C, TcpStream>) -> rustls::Error
where
    C: DerefMut<Target = ConnectionCommon<D>>,
    D: SideData,
{
    let error = shake(tls).and_then(|()| tls.read(&mut [0])).expect_err("this end is refused, or refuses");
    tls::cause(&error).unwrap_or_else(|| panic!("not a matter of TLS: {error:?}")).clone()
}
