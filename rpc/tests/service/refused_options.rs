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

#[dhaga_rpc::service(name = "sixty.bytes.in.the.name.of.a.service.are.not.too.many.for.it")]
trait Long {
    fn a_name_of_39_bytes_is_just_short_enough(&self) -> Result<u8, String>;
    fn a_method_of_40_bytes_is_one_byte_too_far(&self) -> Result<u8, String>;
}

fn main() {}
