from accelerated_scan import _scan


class Scan(_scan.Scan):
    @staticmethod
    def backward(ctx, d_output):
        forget, states = ctx.saved_tensors
        return _scan.gradients(forget, states, d_output.contiguous())


def scan(forget, inputs):
    return Scan.apply(forget, inputs)
