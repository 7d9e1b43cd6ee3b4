#[dhaga_rpc::service]
trait Faulty {
    fn borrows(&self, list: &Vec<u8>) -> Result<u8, String>;
    fn lends(&self, text: &mut str) -> Result<u8, String>;
    fn vague(&self, value: impl Into<String>) -> Result<u8, String>;
    fn nameless(&self, (a, b): (u8, u8)) -> Result<u8, String>;
    fn nothing(&self);
    fn plain(&self) -> u8;
    fn half(&self) -> std::io::Result<u8>;
}

fn main() {}
