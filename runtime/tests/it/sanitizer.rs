//! AddressSanitizer sees into the stacks of dhagas: otherwise it would pass whatever we do.

use std::hint::black_box;

use dhaga::Runtime;

use crate::child;

#[test]
fn a_read_of_the_stack_of_a_dhaga_that_has_ended_is_found() {
    let test = child::name_of!(a_read_of_the_stack_of_a_dhaga_that_has_ended_is_found);
    let output = child::run(test, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let ended = runtime.spawn(|| {
            let local = black_box([7_u8; 64]);
            dhaga::yield_now();
            black_box(&local).as_ptr().expose_provenance()
        });
        let address = ended.join().expect("it ends well");
        let reads = runtime.spawn(move || {
            // SAFETY: there is none: the frame has gone, which is what shall be found. The memory is a stack of the runtime's
            // or one of the sanitizer's, so that the read hits nothing but itself.
            unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() }
        });
        println!("read {}", reads.join().expect("it ends well"));
    });
    let Some(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("ERROR: AddressSanitizer: stack-use-after"), "{output:?}");
}
