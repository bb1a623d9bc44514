"""A person in the loop: which cases deserve a look, decisions about them, and a local web page for both."""
