#[dhaga_rpc::service]
trait Faulty {
    async fn waits(&self) -> Result<u8, String>;
    unsafe fn dangerous(&self) -> Result<u8, String>;
    fn generic<T>(&self, value: T) -> Result<u8, String>;
    fn alone() -> Result<u8, String>;
    fn changes(&mut self) -> Result<u8, String>;
    fn consumes(self) -> Result<u8, String>;
    fn has_body(&self) -> Result<u8, String> {
        Ok(1)
    }
    fn connect(&self) -> Result<u8, String>;
    fn many(&self, a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8, i: u8) -> Result<u8, String>;
}

fn main() {}
