//! Orders that cannot work do not compile, and the compiler says in words what to do instead.
#![cfg(all(feature = "decode", feature = "encode", feature = "enforce", feature = "test-util", feature = "translate"))]

#[test]
fn wrong_orders_do_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/compile_fail/right_order.rs");
    cases.compile_fail("tests/compile_fail/enforce_before_decode.rs");
    cases.compile_fail("tests/compile_fail/translate_before_decode.rs");
    cases.compile_fail("tests/compile_fail/encode_before_decode.rs");
    cases.compile_fail("tests/compile_fail/encode_before_translate.rs");
}
