//! Says in which dhaga a panic happens: std's message knows the worker's thread only.

use std::io::{self, Write};
use std::panic;
use std::sync::Once;
use std::thread;

use crate::scheduler::current_task;

/// Puts a line with the dhaga's name before the message of each panic in one, once for the process. What prints the message
/// stays as it was; who sets a hook later sets ours aside with it.
pub(crate) fn name_dhagas() {
    static INSTALLED: Once = Once::new();
    if thread::panicking() {
        // std refuses a new hook meanwhile. The next runtime will install it.
        return;
    }
    INSTALLED.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if let Some(task) = current_task()
                && let Some(head) = task.head()
            {
                let label = head.label();
                // Who reads may have gone, and a panic in here would end the process: std's own message is not missed either.
                let _ = writeln!(io::stderr(), "\nin dhaga {:?} spawned at {}:", label.display_name(), label.site);
            }
            print(info);
        }));
    });
}
