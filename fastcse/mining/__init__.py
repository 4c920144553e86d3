"""Mining: nearest rows of a corpus that is kept, and hard negatives chosen from them."""
