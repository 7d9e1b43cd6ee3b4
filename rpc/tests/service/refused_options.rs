#[dhaga_rpc::service]
trait Faulty {
    #[rpc(notify)]
    fn answers(&self) -> Result<u8, String>;
    #[rpc(notify, timeout = "1s")]
    fn waits(&self);
    #[rpc(timeout = "soon")]
    fn soon(&self) -> Result<u8, String>;
    #[rpc(timeout = "0s")]
    fn never(&self) -> Result<u8, String>;
    #[rpc(idempotent, idempotent)]
    fn twice(&self) -> Result<u8, String>;
    #[rpc(retries = 3)]
    fn unknown(&self) -> Result<u8, String>;
    #[rpc(inline, inline)]
    fn quick(&self) -> Result<u8, String>;
    #[rpc(name = "")]
    fn unnamed(&self) -> Result<u8, String>;
}

fn main() {}
