"""Records as pictures: a page to send, and what a notebook shows; knows records, and no device."""
