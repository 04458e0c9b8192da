"""Make this folder's checkpoint, and print its logits, with TensorFlow (2.21 did): `python make.py`.

A MobileNetV3-Small, minimalistic, with TF-Slim's names and shapes of variables, of 8 channels to keep it small.
"""

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
v1.disable_eager_execution()
ROWS = [(8, 2), (40, 2), (32, 1), (32, 2), (48, 1), (48, 1), (24, 1), (24, 1), (48, 2), (48, 1), (48, 1)]  # exp, stride
rng, values = np.random.default_rng(7), {}


def variable(name, shape, **kwargs):
    """In float16, computed with in float32; its value is drawn here."""
    found = v1.get_variable(name, [int(n) for n in shape], tf.float16, **kwargs)
    value = rng.standard_normal(found.shape)
    if name == "moving_variance":
        value = rng.uniform(0.5, 1.5, found.shape)
    elif name == "gamma":
        value = 1 + 0.2 * value
    elif len(shape) == 1:
        value = 0.2 * value
    else:
        fan_in = np.prod(shape[:2] if name == "depthwise_weights" else shape[:3])
        value = 1.4 * value / np.sqrt(float(fan_in))
    values[found] = value.astype("f2")
    return tf.cast(found, tf.float32)


def norm(x):
    with v1.variable_scope("BatchNorm"):
        gamma, beta = (variable(name, x.shape[-1:]) for name in ("gamma", "beta"))
        mean, variance = (variable(f"moving_{name}", x.shape[-1:], trainable=False) for name in ("mean", "variance"))
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)


def conv(x, channels, scope, *, kernel=1, stride=1, bias=False):
    with v1.variable_scope(scope):
        x = tf.nn.conv2d(x, variable("weights", [kernel, kernel, x.shape[-1], channels]), stride, "SAME")
        return x + variable("biases", [channels]) if bias else norm(x)


def depthwise(x, stride):
    with v1.variable_scope("depthwise"):
        weights = variable("depthwise_weights", [3, 3, x.shape[-1], 1])
        return norm(tf.nn.depthwise_conv2d(x, weights, [1, stride, stride, 1], "SAME"))


x = pixels = v1.placeholder(tf.float32, [None, 33, 47, 3])
with v1.variable_scope("MobilenetV3"):
    x = tf.nn.relu(conv(x, 8, "Conv", kernel=3, stride=2))
    for i, (exp, stride) in enumerate(ROWS):
        shortcut = x
        with v1.variable_scope(f"expanded_conv_{i}" if i else "expanded_conv"):
            x = tf.nn.relu(conv(x, exp, "expand")) if i else x
            x = conv(tf.nn.relu(depthwise(x, stride)), 8, "project")
        x = x + shortcut if stride == 1 else x
    x = tf.nn.relu(conv(x, 16, "Conv_1"))
    x = tf.reduce_mean(x, [1, 2], keepdims=True)
    x = tf.nn.relu(conv(x, 8, "Conv_2", bias=True))
    with v1.variable_scope("Logits"):
        logits = tf.squeeze(conv(x, 5, "Conv2d_1c_1x1", bias=True), [1, 2])
step = v1.get_variable("global_step", [], tf.int64, v1.zeros_initializer())
picture = (np.arange(2 * 33 * 47 * 3) * 37 % 255 / 127.5 - 1).reshape(2, 33, 47, 3)
with v1.Session() as session:
    session.run([step.initializer, *(each.assign(value) for each, value in values.items())])
    v1.train.Saver([*values, step]).save(session, "./model", write_meta_graph=False, write_state=False)
    print(session.run(logits, {pixels: picture}).tolist())
