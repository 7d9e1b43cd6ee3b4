#[dhaga_rpc::service]
trait Faulty {
    fn early(&self, #[rpc(default = 10)] limit: u32, path: String) -> Result<u8, String>;
    fn between(&self, #[rpc(default)] a: u32, b: Option<u32>, c: u32, #[rpc(default)] d: u32) -> Result<u8, String>;
    fn twice(&self, #[rpc(default, default = 1)] a: u32) -> Result<u8, String>;
    fn unknown(&self, #[rpc(optional)] a: u32) -> Result<u8, String>;
    fn of_self(#[rpc(default)] &self) -> Result<u8, String>;
    #[rpc(default)]
    fn above(&self, a: u32) -> Result<u8, String>;
    fn lends(&self) -> Result<Option<&[u8]>, String>;
    fn lends_text(&self) -> Result<&str, String>;
    fn lends_error(&self) -> Result<u8, &'static str>;
}

#[dhaga_rpc::service]
trait OtherType {
    fn number(&self, #[rpc(default = "ten")] a: u32) -> Result<u8, String>;
}

fn main() {}
