def demo(): """d"""
