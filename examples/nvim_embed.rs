//! An editor as a child: starts `nvim --embed`, lets it compute and edit, and is called back by it in between.
//!
//! Run:  cargo run --release -p dhaga-examples --example nvim_embed [NVIM]
//! You will see Neovim's version, the result of an expression, and lines of its buffer, which it had a function of this program change.
//! Where nvim is not installed it says so, and that is all.

use std::error::Error;
use std::io::ErrorKind;

use dhaga::process::Command;
use dhaga_rpc::{CallError, Client, Value};

/// Runs in Neovim: asks the other side of the channel for something in place of each line.
const CHANGE_LINES: &str = "
    local channel = ...
    for number, line in ipairs(vim.api.nvim_buf_get_lines(0, 0, -1, true)) do
        local changed = vim.rpcrequest(channel, 'change', number, line)
        vim.api.nvim_buf_set_lines(0, number - 1, number, true, { changed })
    end";

fn main() -> Result<(), Box<dyn Error>> {
    let program = std::env::args().nth(1).unwrap_or_else(|| "nvim".to_owned());
    // Either side calls: this is for Neovim, and it is called while we wait for Neovim.
    let builder = Client::builder().method("change", |number: u64, line: String| Ok(format!("{number}. {line}")));
    let nvim = match builder.spawn(Command::new(&program).args(["--clean", "--embed", "--headless"])) {
        Err(CallError::Connect(error)) if error.kind() == ErrorKind::NotFound => {
            println!("{program} is not installed, so there is nothing to show");
            return Ok(());
        }
        nvim => nvim?,
    };

    // Its answer begins with the number of this channel, by which Neovim calls back.
    let (channel, _): (u64, Value) = nvim.call("nvim_get_api_info", ())?;
    let version: String = nvim.call("nvim_exec", ("version", true))?;
    println!("{}", version.trim().lines().next().unwrap_or_default());
    println!("6 * 7 = {}", nvim.call::<_, i64>("nvim_eval", ("6 * 7",))?);

    let lines = ["code reads as sequential", "and runs as asynchronous"];
    nvim.call::<_, ()>("nvim_buf_set_lines", (0, 0, -1, true, lines))?;
    nvim.call::<_, ()>("nvim_exec_lua", (CHANGE_LINES, (channel,)))?;
    for line in nvim.call::<_, Vec<String>>("nvim_buf_get_lines", (0, 0, -1, true))? {
        println!("{line}");
    }

    // What it says of a mistake is an error of the call.
    if let Err(error) = nvim.call::<_, Value>("nvim_eval", ("6 *",)) {
        println!("{error}");
    }
    Ok(())
}
