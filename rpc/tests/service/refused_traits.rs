#[dhaga_rpc::service]
trait Generic<T> {
    fn get(&self) -> Result<T, String>;
}

#[dhaga_rpc::service]
trait WithType {
    type Key;
    const MAX: usize;
    fn get(&self) -> Result<u8, String>;
}

#[dhaga_rpc::service(prefix = "x")]
trait Unknown {}

#[dhaga_rpc::service(name = "$/x")]
trait Reserved {}

#[dhaga_rpc::service]
trait Twins {
    fn a(&self) -> Result<u8, String>;
    #[rpc(name = "a")]
    fn b(&self) -> Result<u8, String>;
}

fn main() {}
