//! Names that could be mixed up with those of the code that the attribute makes, and services that are not public.

#[dhaga_rpc::service]
trait Inner {
    fn r#match(&self, service: u8, methods: u8, server: u8, error: u8) -> std::result::Result<u8, String>;
    fn value(&self, name: &str, params: &[u8], client: Vec<u8>) -> Result<Vec<u8>, String>;
    #[rpc(name = "connect")]
    fn attach(&self) -> Result<(), String>;
    #[rpc(notify, name = "gone")]
    fn leave(&self);
}

struct One;

impl Inner for One {
    fn r#match(&self, service: u8, methods: u8, server: u8, error: u8) -> Result<u8, String> {
        Ok(service + methods + server + error)
    }
    fn value(&self, name: &str, params: &[u8], client: Vec<u8>) -> Result<Vec<u8>, String> {
        Ok([name.as_bytes(), params, &client].concat())
    }
    fn attach(&self) -> Result<(), String> {
        Ok(())
    }
    fn leave(&self) {}
}

#[dhaga_rpc::service]
trait Empty {}

impl Empty for One {}

#[dhaga_rpc::service]
trait T {
    fn t(&self) -> Result<u8, String>;
}

#[dhaga_rpc::service]
trait S {
    fn s(&self) -> Result<u8, String>;
}

mod raw {
    #[dhaga_rpc::service]
    pub trait r#T {
        fn t(&self) -> Result<u8, String>;
    }
}

impl T for One {
    fn t(&self) -> Result<u8, String> {
        Ok(1)
    }
}

impl S for One {
    fn s(&self) -> Result<u8, String> {
        Ok(2)
    }
}

fn main() {
    let server = dhaga_rpc::Server::builder().service(InnerServer::new(One)).service(EmptyServer::new(One));
    let server = server.service(TServer::new(One)).service(SServer::new(One));
    let server = server.bind("127.0.0.1:0").unwrap();
    let inner = InnerClient::connect(server.local_addr()).unwrap();
    assert_eq!(inner.r#match(1, 2, 3, 4).unwrap(), 10);
    assert_eq!(inner.value("a", b"b", b"c".to_vec()).unwrap(), b"abc");
    inner.attach().unwrap();
    inner.leave().unwrap();
    assert_eq!(TClient::new(inner.client().clone()).t().unwrap(), 1);
    assert_eq!(SClient::new(inner.client().clone()).s().unwrap(), 2);
    assert_eq!(InnerClient::DESCRIPTION.methods[0].name, "match");
    assert!(EmptyClient::DESCRIPTION.methods.is_empty());
}
