"""Steps that learn: a draft as a torch graph whose weights, biases and ranges have gradients.

Needs the extra ``torch``; nothing of onnxq imports this package until a step asks for it.
"""
