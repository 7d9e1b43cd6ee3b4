" Neovim as a client, by its own channels: nvim --clean --headless --cmd 'let g:peer = "HOST:PORT"' -S neovim.vim
" See README.md beside this file. Vim script and not Lua, whose numbers are doubles. A call blocks, so there is one at a time.

function! Outcome(method, params)
    try
        return ['ok', call('rpcrequest', [g:channel, a:method] + a:params)]
    catch
        return ['error', v:exception]
    endtry
endfunction

function! Perform(kind, method, params)
    if a:kind ==# 'call'
        return Outcome(a:method, a:params)
    elseif a:kind ==# 'notify'
        call call('rpcnotify', [g:channel, a:method] + a:params)
        return ['ok', v:null]
    elseif a:kind ==# 'leave'
        " What is called by notification runs just as long, and this process does not wait for it.
        call call('rpcnotify', [g:channel, a:method] + a:params)
        call chanclose(g:channel)
        qall!
    endif
    return ['unable', v:null]
endfunction

try
    let g:channel = sockconnect('tcp', g:peer, {'rpc': v:true})
    while v:true
        let g:step = rpcrequest(g:channel, 'next')
        if type(g:step) != v:t_list
            break
        endif
        call rpcrequest(g:channel, 'report', Perform(g:step[0], g:step[1], g:step[2]))
    endwhile
catch
    call writefile([v:exception, v:throwpoint], '/dev/stderr')
    cquit!
endtry
qall!
